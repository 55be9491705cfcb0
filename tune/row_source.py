"""Trials that are decided on while others run, by the rows of those that have ended."""

from collections import deque
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from gcsr import TrialConfig
from tune.events import RunEvent
from tune.job import Outcome
from tune.recorder import Recorder

if TYPE_CHECKING:
    from tune.cutting import UnitCutter
    from tune.inline_executor import InlineExecutor
    from tune.ray_executor import RayExecutor

__all__ = ["RowSource", "Wanted", "run_source"]


class Wanted(NamedTuple):
    """Trials that belong together, and are to be cut into units (`tune.cutting.UnitCutter.cut`).

    Attributes:
        trials: all of them.
        missing: ids of those that are to be trained.
    """

    trials: Sequence[TrialConfig]
    missing: Set[str]


class RowSource(Protocol):
    """Trials that are decided on by the rows of those that ended."""

    def next(self) -> Wanted | None:
        """What to train next; None if there is nothing until a trial has ended, or at all (see `finished`)."""

    @property
    def finished(self) -> bool:
        """Whether every trial has ended."""

    def ended(self, row: dict[str, Any]) -> None:
        """A trial ended: its row of the store."""


def run_source(executor: "InlineExecutor | RayExecutor", source: RowSource, recorder: Recorder) -> None:
    """Run what the source gives until it has finished; it is told of every row once that is stored."""
    if not source.finished:
        executor.search(_Units(source, executor.cutter), _Feeding(source, recorder))


class _Units:
    """What a source wants, in units."""

    def __init__(self, source: RowSource, cutter: "UnitCutter") -> None:
        self._source, self._cutter = source, cutter
        self._queue: deque[list[TrialConfig]] = deque()

    def next(self) -> list[TrialConfig] | None:
        while not self._queue and (wanted := self._source.next()) is not None:
            self._queue.extend(self._cutter.cut(wanted.trials, wanted.missing))
        return self._queue.popleft() if self._queue else None

    @property
    def finished(self) -> bool:
        return self._source.finished


class _Feeding:
    """Tells the recorder, and then the source."""

    def __init__(self, source: RowSource, recorder: Recorder) -> None:
        self._source, self._recorder = source, recorder

    def ended(self, outcome: Outcome) -> None:
        self._recorder.ended(outcome)
        self._recorder.wait()
        self._source.ended(outcome.row)

    def noticed(self, event: RunEvent) -> None:
        self._recorder.noticed(event)
