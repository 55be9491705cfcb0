"""Training a unit of work (`tune.cutting`) in this process."""

from collections.abc import Iterator, Sequence

from gcsr import TrialConfig
from gcsr.cohort import train_cohort
from tune.cutting import is_stacked
from tune.job import Outcome, SweepJob
from tune.schema import epoch_rows, trial_row
from tune.trial import blame_machine, dataset_of, device_of, failed_outcome, network_saver, run_trials

__all__ = ["run_unit"]


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
    device = device_of(job)
    try:
        data = dataset_of(configs[0], job.data, device)
        results = train_cohort(configs, data, stop_collapsed=job.stop_collapsed, on_network=network_saver(job))
        return [
            Outcome(trial_row(config, job.experiment, result), epoch_rows(config, result))
            for config, result in zip(configs, results, strict=True)
        ]
    except Exception as error:
        blame_machine(error, device)
        if len(configs) == 1:
            return [failed_outcome(configs[0], job, error)]
    # Too large for the device (what the error still held is free by now), or one trial's fault: each gets its own.
    return [outcome for config in configs for ended in run_unit([config], job) for outcome in ended]
