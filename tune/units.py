"""Units of work: one trial, or a cohort of trials that one process trains together."""

import functools
import itertools
from collections.abc import Sequence
from typing import Literal, Protocol

import torch

from gcsr import TrialConfig
from gcsr.cohort import cohort_key, train_cohort
from gcsr.models import build_model
from tune.schema import epoch_rows, trial_row
from tune.trial import Outcome, SweepJob, choose_device, dataset_of, failed_outcome, run_trial

__all__ = ["UnitSource", "is_stacked", "run_unit", "units"]

# Measured on one core (python -m tests.benchmarks cohort): up to this many parameters eight weight sets stay in its
# cache and a trial of eight takes 0.5 to 0.7 of one alone; four times as many, and alone is faster.
_SMALL = 150_000
_CPU_SIZE, _GPU_SIZE = 8, 32


class UnitSource(Protocol):
    """Units that are decided on while others run."""

    def next(self) -> list[TrialConfig] | None:
        """The next unit; None if there is none until another has ended, or at all (see `finished`)."""

    @property
    def finished(self) -> bool:
        """Whether every trial has ended."""


def is_stacked(config: TrialConfig, cohort: int | Literal["auto"]) -> bool:
    """Whether the trial is trained as a member of a cohort, be it the only one.

    With ``auto`` small plain networks on digits are: there stacking was measured to be faster, and the trials are so
    short that they write no checkpoints anyway. A trial's bits depend on the answer, so it depends on nothing but the
    trial and the option: not on the machine, nor on which other trials are still to be run.
    """
    if cohort != "auto":
        return cohort > 1
    return config.dataset == "digits" and _parameters(config.model, config.width) <= _SMALL


@functools.lru_cache
def _parameters(model: str, width: float) -> int:
    with torch.device("meta"):
        network = build_model(model, input_shape=(1, 8, 8), classes=10, width=width, dropout=0.0)
    return sum(p.numel() for p in network.parameters())


def units(trials: Sequence[TrialConfig], cohort: int | Literal["auto"], *, gpu: bool) -> list[list[TrialConfig]]:
    """All trials of a sweep in units that can be trained together, in their order as far as possible."""
    size = (_GPU_SIZE if gpu else _CPU_SIZE) if cohort == "auto" else cohort
    groups: dict[tuple[object, ...], list[TrialConfig]] = {}
    for config in trials:
        key = cohort_key(config) if is_stacked(config, cohort) else (config.trial_id,)
        groups.setdefault(key, []).append(config)
    return [part for group in groups.values() for part in _parts(group, size)]


def _parts(group: list[TrialConfig], size: int) -> list[list[TrialConfig]]:
    """The group in as few parts as its size allows, as equal as can be."""
    count = -(-len(group) // size)
    bounds = [len(group) * k // count for k in range(count + 1)]
    return [group[low:high] for low, high in itertools.pairwise(bounds)]


def run_unit(configs: Sequence[TrialConfig], job: SweepJob) -> list[Outcome]:
    """Train a unit; an exception becomes ``failed`` rows, of the trials whose fault it is.

    Trials that the job's deadline overtook have no outcome. A cohort, which has no checkpoints, is not begun after
    it, and runs to its end otherwise.
    """
    if job.out_of_time():
        return []
    if not is_stacked(configs[0], job.cohort):
        return [outcome for config in configs if (outcome := run_trial(config, job)) is not None]
    try:
        data = dataset_of(configs[0], job, choose_device(job.device))
        results = train_cohort(configs, data, stop_collapsed=job.stop_collapsed)
        return [
            Outcome(trial_row(config, job.experiment, result), epoch_rows(config, result))
            for config, result in zip(configs, results, strict=True)
        ]
    except Exception as error:
        if len(configs) == 1:
            return [failed_outcome(configs[0], job, error)]
        # Too large for the device, or one trial's fault: each gets what is its own.
        return [outcome for config in configs for outcome in run_unit([config], job)]
