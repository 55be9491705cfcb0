"""Units of work: what one process trains before it is given more."""

import functools
import itertools
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Literal

import torch

from gcsr import TrialConfig
from gcsr.cohort import cohort_key, train_cohort
from gcsr.interleaving import MOST_INTERLEAVED
from gcsr.models import build_model
from tune.job import Outcome, SweepJob
from tune.schema import epoch_rows, trial_row
from tune.trial import blame_machine, choose_device, dataset_of, failed_outcome, run_trials

__all__ = ["UnitCutter", "is_stacked", "run_unit"]

# Measured on one core: a trial of four takes 0.5 (mlp2) to 0.7 (mlp6) of one alone (python -m tests.benchmarks
# cohort). Of more parameters than this it gains less, which does not pay for the checkpoints that a cohort lacks.
_SMALL = 150_000
_SHORT = 300  # epochs, as a cohort that is killed, or meets a deadline, has lost them all
_CPU_SIZE, _GPU_SIZE = 4, 32
_EVEN = 4  # cohorts come in multiples of it, so that two or four cores are done at the same time


def is_stacked(config: TrialConfig, cohort: int | Literal["auto"]) -> bool:
    """Whether the trial is trained as a member of a cohort, be it the only one.

    With ``auto`` small plain networks on digits are, for up to `_SHORT` epochs: there stacking was measured to be
    faster, and the trials are so short that they write no checkpoints anyway. A trial's bits depend on the answer, so
    it depends on nothing but the trial and the option: not on the machine, nor on which other trials are to be run.
    """
    if cohort != "auto":
        return cohort > 1
    short: bool = config.epochs <= _SHORT  # type: ignore[operator]
    return short and config.dataset == "digits" and _parameters(config.model, config.width) <= _SMALL


@functools.lru_cache
def _parameters(model: str, width: float) -> int:
    with torch.device("meta"):
        network = build_model(model, input_shape=(1, 8, 8), classes=10, width=width, dropout=0.0)
    return sum(p.numel() for p in network.parameters())


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitCutter:
    """Cuts trials into units.

    Attributes:
        job: of the sweep.
        gpu: whether its trials run on GPUs.
        slots: how many units run at once.
    """

    job: SweepJob
    gpu: bool
    slots: int

    def cut(self, trials: Sequence[TrialConfig], missing: Set[str] | None = None) -> list[list[TrialConfig]]:
        """Units that can be trained together, in the trials' order as far as possible.

        Cohorts are cut from all trials, and whole: who is stacked with whom changes their bits, and must not depend on
        what a killed run left. Of all others only those that are missing are in a unit.

        Args:
            trials: of a sweep, or of a setting.
            missing: ids of those that have not ended; None for all.
        """

        def wanted(config: TrialConfig) -> bool:
            return missing is None or config.trial_id in missing

        cohorts: dict[tuple[object, ...], list[TrialConfig]] = {}
        others: dict[tuple[object, ...], list[TrialConfig]] = {}
        found: list[list[TrialConfig]] = []
        for config in trials:
            if self.job.workers == 1 and is_stacked(config, self.job.cohort):
                cohorts.setdefault(cohort_key(config), []).append(config)
            elif wanted(config):
                others.setdefault(_interleaving_key(config), []).append(config)
        for group in cohorts.values():
            parts = _parts(group, self._cohorts(len(group)))
            found += [part for part in parts if any(map(wanted, part))]
        for group in others.values():
            found += _parts(group, self._units(len(group)))
        places = {config: place for place, config in enumerate(trials)}
        return sorted(found, key=lambda unit: places[unit[0]])

    def at_once(self, units: Sequence[Sequence[TrialConfig]]) -> int:
        """How many trials of such units are under way at once, at most."""
        return self.slots * max(map(self._under_way, units), default=1)

    def _under_way(self, unit: Sequence[TrialConfig]) -> int:
        """How many trials of a unit are under way at once."""
        return len(unit) if is_stacked(unit[0], self.job.cohort) else min(len(unit), self._most_interleaved())

    def _most_interleaved(self) -> int:
        per_gpu = self.job.trials_per_gpu
        return MOST_INTERLEAVED if per_gpu == "auto" else per_gpu

    def _cohorts(self, trials: int) -> int:
        """How many cohorts to make of trials that can be stacked."""
        if self.job.cohort != "auto":
            return -(-trials // self.job.cohort)
        count = -(-trials // (_GPU_SIZE if self.gpu else _CPU_SIZE))
        return count if count <= _EVEN else -(-count // _EVEN) * _EVEN

    def _units(self, trials: int) -> int:
        """Into how many units to cut trials that are not stacked: as few as leave no slot idle at the end.

        With one slot that is one: in it a trial that ends makes room for the next.
        """
        per_gpu = self.job.trials_per_gpu
        if self.job.workers > 1 or per_gpu == 1 or (per_gpu == "auto" and not self.gpu):
            return trials
        rounds = 1 if self.slots == 1 else -(-trials // (self._most_interleaved() * self.slots))
        return min(trials, rounds * self.slots)


def _interleaving_key(config: TrialConfig) -> tuple[object, ...]:
    """What trials must have in common to be interleaved: they round alike, on one data set, and one network is of one
    size, as whoever measures how many fit takes for granted.
    """
    return config.dataset, config.model, config.width, config.precision


def _parts(group: list[TrialConfig], count: int) -> list[list[TrialConfig]]:
    """The group in so many parts, as equal as can be."""
    bounds = [len(group) * k // count for k in range(count + 1)]
    return [group[low:high] for low, high in itertools.pairwise(bounds)]


def run_unit(configs: Sequence[TrialConfig], job: SweepJob) -> Iterator[list[Outcome]]:
    """Train a unit; yields the outcomes of trials that ended at the same time, as they come.

    An exception becomes ``failed`` rows, of the trials whose fault it is. Trials that the job's deadline overtook have
    no outcome. A cohort, which has no checkpoints, is not begun after it, and runs to its end otherwise.

    Raises:
        UnfitNodeError: this machine's GPU failed; no trial can go on in this process.
    """
    if not is_stacked(configs[0], job.cohort):
        yield from ([outcome] for outcome in run_trials(configs, job))
    elif not job.out_of_time():
        yield _run_cohort(configs, job)


def _run_cohort(configs: Sequence[TrialConfig], job: SweepJob) -> list[Outcome]:
    try:
        data = dataset_of(configs[0], job.data, choose_device(job.device))
        results = train_cohort(configs, data, stop_collapsed=job.stop_collapsed)
        return [
            Outcome(trial_row(config, job.experiment, result), epoch_rows(config, result))
            for config, result in zip(configs, results, strict=True)
        ]
    except Exception as error:
        blame_machine(error, job.device)
        if len(configs) == 1:
            return [failed_outcome(configs[0], job, error)]
    # Too large for the device (what the error still held is free by now), or one trial's fault: each gets its own.
    return [outcome for config in configs for ended in run_unit([config], job) for outcome in ended]
