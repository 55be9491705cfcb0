"""A Ray Tune searcher that hands out units which are decided on while others run."""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.search import Searcher

from gcsr import TrialConfig
from tune.job import UnitSource
from tune.trainable import UNIT, unit_text

__all__ = ["UnitSearcher", "back_off"]

_BACK_OFF_SECONDS = 2.0  # after the first loss; doubles
_DOUBLED_AT_MOST = 5  # times


def back_off(losses: int) -> float:
    """Seconds before what was lost so many times is tried again."""
    return _BACK_OFF_SECONDS * 2.0 ** min(losses - 1, _DOUBLED_AT_MOST)


class UnitSearcher(Searcher):  # type: ignore[misc]
    """Tune's view of a `UnitSource`; results reach the source through the executor's callback, not through Tune.

    Args:
        source: of the units.
        shared: entries of every Tune config.
        left: what is still to be trained of a unit.
        again: told of each unit whose worker was lost; what to try of it, in units, or nothing to give it up.
        on_lost: called with a unit that is given up.
    """

    def __init__(
        self,
        source: UnitSource,
        shared: dict[str, Any],
        *,
        left: Callable[[Sequence[TrialConfig]], list[TrialConfig]],
        again: Callable[[Sequence[TrialConfig]], list[list[TrialConfig]]],
        on_lost: Callable[[Sequence[TrialConfig]], None],
    ) -> None:
        super().__init__(metric="done", mode="max")
        self._source, self._shared, self._on_lost = source, shared, on_lost
        self._left, self._what_again = left, again
        self._running: dict[str, list[TrialConfig]] = {}
        self._again: deque[tuple[float, list[TrialConfig]]] = deque()
        self._lost: Counter[str] = Counter()  # in all: a place that loses workers again and again is given time

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it into its experiment state, which we never restore: the store is the truth

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        unit = None
        if self._again and self._again[0][0] <= time.monotonic():
            unit = self._again.popleft()[1]
        elif (unit := self._source.next()) is None:
            return Searcher.FINISHED if self._source.finished and not self._again else None
        self._running[trial_id] = unit
        return {UNIT: unit_text(unit), **self._shared}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        unit = self._left(self._running.pop(trial_id, []))
        if not unit or not error:
            return
        key = unit[0].trial_id
        self._lost[key] += 1
        when = time.monotonic() + back_off(self._lost[key])
        again = self._what_again(unit)
        self._again.extend((when, part) for part in again)
        if not again:
            self._on_lost(unit)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: see `__getstate__`."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `__getstate__`."""
