"""The inline executor: one trial after the other in this process, without Ray."""

from collections.abc import Callable, Sequence

import torch

from gcsr import TrialConfig
from tune.trial import Outcome, SweepJob, run_trial

__all__ = ["run_inline"]


def run_inline(
    trials: Sequence[TrialConfig],
    job: SweepJob,
    *,
    on_start: Callable[[str], None],
    on_end: Callable[[Outcome], None],
) -> None:
    """Run all trials.

    Args:
        trials: what to run, in this order.
        job: what they share.
        on_start: called with a trial's id before it runs.
        on_end: called with its outcome, before the next one starts.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(job.threads)  # as a Ray worker does: the same trial gives the same bits in both executors
    try:
        for config in trials:
            on_start(config.trial_id)
            on_end(run_trial(config, job))
    finally:
        torch.set_num_threads(threads)
