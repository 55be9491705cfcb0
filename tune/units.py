"""Units of work: one trial, or a cohort of trials that one process trains together."""

import math
from collections.abc import Sequence
from dataclasses import replace

from gcsr import Dataset, TrialConfig, train
from gcsr.cohort import cohort_key, train_cohort
from gcsr.models import is_mlp
from tune.schema import epoch_rows, trial_row
from tune.trial import Outcome, SweepJob, choose_device, dataset_of, run_trial

__all__ = ["run_unit", "unit_size", "units"]

_AUTO_ON_GPU = 32  # trials
_TRIAL_EPOCHS = 2  # of the measurement that decides: one to warm up, one to time


def unit_size(job: SweepJob, *, gpu: bool, trials: int, slots: int) -> int:
    """How many trials a unit may have.

    With ``cohort: auto`` a unit is one trial on CPUs, where a core is kept busy by one network; on GPUs it is as many
    as still give every slot its share, and `run_unit` measures whether together is faster.
    """
    if job.cohort != "auto":
        return job.cohort
    return min(_AUTO_ON_GPU, max(1, math.ceil(trials / max(1, slots)))) if gpu else 1


def units(trials: Sequence[TrialConfig], size: int) -> list[list[TrialConfig]]:
    """The trials in units of at most ``size`` that can be trained together, in their order as far as possible."""
    if size == 1:
        return [[config] for config in trials]
    groups: dict[tuple[object, ...], list[TrialConfig]] = {}
    for config in trials:
        groups.setdefault(cohort_key(config), []).append(config)
    return [group[low : low + size] for group in groups.values() for low in range(0, len(group), size)]


def run_unit(configs: Sequence[TrialConfig], job: SweepJob) -> list[Outcome]:
    """Train a unit; an exception becomes ``failed`` rows, of the trials whose fault it is."""
    if len(configs) > 1:
        try:
            data = dataset_of(configs[0], job, choose_device(job.device))
            if job.cohort != "auto" or _together_is_faster(configs[0], len(configs), data):
                return [
                    Outcome(trial_row(config, job.experiment, result), epoch_rows(config, result))
                    for config, result in zip(configs, train_cohort(configs, data), strict=True)
                ]
        except Exception:  # too large for the device, or one trial's fault: alone each gets what is its own
            return [run_trial(config, job) for config in configs]
    return [run_trial(config, job) for config in configs]


def _together_is_faster(config: TrialConfig, count: int, data: Dataset) -> bool:
    # Convolutional trials are long: they need the checkpoints that a cohort does not write.
    if not is_mlp(config.model):
        return False
    key = (cohort_key(config), count, data.train_images.device)
    if key not in _measured:
        short = replace(config, epochs=_TRIAL_EPOCHS)
        alone = train(short, data).epochs
        together = train_cohort([replace(short, seed=seed) for seed in range(count)], data)[0].epochs
        _measured[key] = bool(alone and together) and _faster(alone[-1].seconds, together[-1].seconds)
    return _measured[key]


def _faster(alone: float, together: float) -> bool:
    return together < alone


_measured: dict[tuple[object, ...], bool] = {}  # once a process: workers are reused
