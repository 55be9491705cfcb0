"""Between Tune's experiment and the sweep: outcomes, lost workers, nodes that come and go."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from ray import tune as ray_tune

from gcsr import TrialConfig
from tune.capacity import alive_nodes
from tune.events import NodeJoined, NodeLeft, NodeUnfit, Pulse, WorkerLost
from tune.node_check import NodeChecks
from tune.quarantine import Quarantine
from tune.recorder import Listener
from tune.trainable import OUTCOME, UNIT, trials_of, unit_text

__all__ = ["NodeWatch", "Relay", "StopWhenOver"]

_PULSE_SECONDS = 5.0


class NodeWatch:
    """Looks at the cluster's nodes every few seconds, keeps trials off those that join unfit, and tells what changed.

    Args:
        nodes: that have passed the checks.
        checks: for those that join.
        quarantine: for those that do not pass.
        under_way: how many trials of a running unit are under way at once.
    """

    def __init__(
        self,
        nodes: Sequence[dict[str, Any]],
        checks: NodeChecks,
        quarantine: Quarantine,
        under_way: Callable[[Sequence[TrialConfig]], int],
    ) -> None:
        self._checks, self._quarantine, self._under_way = checks, quarantine, under_way
        self._known = {node["NodeID"]: node for node in nodes}
        self._next = 0.0

    @property
    def nodes(self) -> tuple[dict[str, Any], ...]:
        """That were there when it last looked."""
        return tuple(self._known.values())

    def look(self, trials: Sequence[Any], listener: Listener) -> None:
        """Tell the listener, if it is time again.

        Args:
            trials: Tune's.
            listener: to be told.
        """
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _PULSE_SECONDS
        now = {node["NodeID"]: node for node in alive_nodes()}
        for name in self._known.keys() - now.keys():
            listener.noticed(NodeLeft(node=self._known[name]["NodeManagerAddress"], nodes=len(now)))
            self._quarantine.forget(self._known[name])
        for name in now.keys() - self._known.keys():
            listener.noticed(NodeJoined(node=now[name]["NodeManagerAddress"], nodes=len(now)))
            self._checks.start(now[name])
        self._known = now
        for node, problem in self._checks.finished():
            if problem is not None and node["NodeID"] in now:
                self._quarantine.close(node)
                listener.noticed(NodeUnfit(node=node["NodeManagerAddress"], problem=problem))
        running = sum(self._under_way(trials_of(trial.config)) for trial in trials if trial.status == "RUNNING")
        listener.noticed(Pulse(running=running, nodes=len(now)))


class Relay(ray_tune.Callback):  # type: ignore[misc]
    """Hands what Tune tells about its trials on to the sweep.

    Tune does not let a callback's exception out: it is kept, `StopWhenOver` ends the experiment, and we raise it then.

    Args:
        listener: to be told.
        watch: of the cluster's nodes; None on a Ray of our own.
        left: what is still to be trained of a unit.

    Attributes:
        error: of the listener's.
        out_of_time: whether a worker has found that the deadline has passed; its clock may be ahead of ours.
    """

    def __init__(
        self,
        listener: Listener,
        watch: NodeWatch | None,
        left: Callable[[Sequence[TrialConfig]], list[TrialConfig]],
    ) -> None:
        self._listener, self._watch, self._left = listener, watch, left
        self.error: Exception | None = None
        self.out_of_time = False
        self._in_time: set[str] = set()  # units under way that were begun before the deadline

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks into its experiment state, which we never restore: the store is the truth.
        return {"_listener": None, "_watch": None, "_left": None, "error": None}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Trials of a unit ended."""
        outcomes = result[OUTCOME]
        self.out_of_time = self.out_of_time or not outcomes
        result[OUTCOME] = len(outcomes)  # Tune keeps a trial's last result for good, and prints one that is empty
        try:
            for outcome in outcomes if self.error is None else ():
                self._listener.ended(outcome)
        except Exception as error:  # the disk is full, the store is gone
            self.error = error

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A unit's worker was lost; Tune tries again what is left of it."""
        self._lost(trial)
        if left := self._left(trials_of(trial.config)):
            trial.set_config(trial.config | {UNIT: unit_text(left)})

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A unit's worker was lost again; the executor tries it later."""
        self._lost(trial)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker begins a unit."""
        if not self.out_of_time:
            self._in_time.add(trial.trial_id)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A unit has ended."""
        self._in_time.discard(trial.trial_id)

    @property
    def over(self) -> bool:
        """Whether nothing can come any more: the listener cannot go on, or time is over and nobody is at work."""
        return self.error is not None or (self.out_of_time and not self._in_time)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tune goes once round its loop."""
        if self._watch is not None and self.error is None:
            try:
                self._watch.look(trials, self._listener)
            except Exception as error:
                self.error = error

    def _lost(self, trial: Any) -> None:
        self._in_time.discard(trial.trial_id)
        if self.error is None:
            self._listener.noticed(WorkerLost(trials=_named(trials_of(trial.config))))


class StopWhenOver(ray_tune.Stopper):  # type: ignore[misc]
    """Ends the experiment once an outcome could not be stored, or only units are left that would not be begun."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._relay.over


def _named(unit: list[TrialConfig]) -> str:
    first = f"{unit[0].model} {unit[0].regularizer} {unit[0].mode} λ={unit[0].lam:g} seed {unit[0].seed}"
    return first if len(unit) == 1 else f"{first} and {len(unit) - 1} more"
