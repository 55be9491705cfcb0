"""A sweep's numbers as Prometheus metrics, on the metrics port of the cluster's nodes beside Ray's own."""

import time
from collections import deque
from typing import Self

from ray.util.metrics import Counter, Gauge

from tune.events import Pulse, RunEvent
from tune.job import Outcome

__all__ = ["SweepMetrics"]

_RATE_SECONDS = 1800.0  # trials/hour is over the trials of the last half hour
_LAST_PI = 50  # trials


class SweepMetrics:
    """Publishes, with the tag ``experiment``, an observer of `tune.recorder.Recorder`; Ray puts ``ray_`` before each.

    ``gcsr_trials`` by status (also ``running`` and ``left``), ``gcsr_trials_per_hour``, ``gcsr_nodes``,
    ``gcsr_collapsed_total`` and ``gcsr_pi``, the mean π of the last trials, by mode and regularizer.

    Args:
        experiment: the sweep's name.
        total: its trials.
        ended_before: how many of them had ended before this run.
    """

    def __init__(self, experiment: str, total: int, ended_before: int) -> None:
        self._experiment = {"experiment": experiment}
        self._left = total - ended_before
        self._statuses: dict[str, int] = {}
        self._ends: deque[float] = deque()
        self._pi: dict[tuple[str, str], deque[float]] = {}
        method = ("experiment", "mode", "regularizer")
        self._trials = Gauge("gcsr_trials", "Trials of the sweep.", ("experiment", "status"))
        self._rate = Gauge("gcsr_trials_per_hour", "Trials that ended, over the last half hour.", ("experiment",))
        self._nodes = Gauge("gcsr_nodes", "Nodes of the cluster that are alive.", ("experiment",))
        self._collapsed = Counter("gcsr_collapsed_total", "Trials that collapsed.", method)
        self._mean_pi = Gauge("gcsr_pi", f"Mean coherence rate of the last {_LAST_PI} trials.", method)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._set("left", self._left)
        return self

    def __exit__(self, *error: object) -> None:
        self._set("running", 0)

    def ended(self, outcome: Outcome) -> None:
        """Count a trial."""
        row = outcome.row
        status, method = row["status"], (row["mode"], row["regularizer"])
        tags = self._experiment | {"mode": method[0], "regularizer": method[1]}
        self._left -= 1
        self._statuses[status] = self._statuses.get(status, 0) + 1
        self._set(status, self._statuses[status])
        self._set("left", max(0, self._left))
        if status == "collapsed":
            self._collapsed.inc(1, tags)
        if row["pi"] is not None:
            last = self._pi.setdefault(method, deque(maxlen=_LAST_PI))
            last.append(row["pi"])
            self._mean_pi.set(sum(last) / len(last), tags)
        self._ends.append(time.monotonic())
        self._set_rate()

    def noticed(self, event: RunEvent) -> None:
        """A pulse brings how many trials run, on how many nodes."""
        if isinstance(event, Pulse):
            self._set("running", event.running)
            self._nodes.set(event.nodes, self._experiment)
            self._set_rate()

    def _set(self, status: str, count: float) -> None:
        self._trials.set(count, self._experiment | {"status": status})

    def _set_rate(self) -> None:
        now = time.monotonic()
        while self._ends and self._ends[0] < now - _RATE_SECONDS:
            self._ends.popleft()
        span = min(_RATE_SECONDS, max(1.0, now - self._began))
        self._rate.set(3600 * len(self._ends) / span, self._experiment)
