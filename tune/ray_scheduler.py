"""Which waiting trial a free worker of Ray Tune gets."""

import heapq
from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

__all__ = ["SparingScheduler"]


class SparingScheduler(FIFOScheduler):  # type: ignore[misc]
    """First come, first served, but it spares the workers that are starting up.

    A starting worker belongs to a trial that waits for it. If a free worker gets that trial, Tune kills the other in
    the middle of its imports; where trials take less time than those, it would do so again and again, and a sweep
    would stay with the few workers that came up first. Tune starts workers in the order of their trials, so the
    oldest waiting trials are left to them, as many as there are workers neither running nor free.

    Args:
        slots: how many trials run at once on the nodes that are there now; as many workers may be starting.
    """

    def __init__(self, slots: Callable[[], int]) -> None:
        super().__init__()
        self._slots = slots

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        live = tune_controller.get_live_trials()
        waiting = [trial for trial in live if trial.status == Trial.PENDING]
        running = sum(trial.status == Trial.RUNNING for trial in live)
        spared = max(0, self._slots() - running - 1)  # 1: if it matters which trial we choose, a worker is free
        oldest = heapq.nsmallest(spared + 1, waiting, key=_age)
        return oldest[-1] if oldest else None


def _age(trial: Trial) -> tuple[int, str]:
    return len(trial.trial_id), trial.trial_id  # Tune numbers them
