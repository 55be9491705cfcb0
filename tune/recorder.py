"""What happens while trials run, told to all who want to know: the store first, then logs, metrics and the screen."""

import contextlib
import threading
from collections.abc import Sequence, Set
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from tune.events import RunEvent
from tune.job import Outcome
from tune.store import Store
from tune.store_writer import StoreWriter

__all__ = ["Listener", "Observer", "Recorder", "RunOutcome"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOutcome:
    """How a run ended; commands add what else they found.

    Attributes:
        statuses: how many of the trials that this call ran ended how.
        failures: one line for each that failed.
    """

    statuses: dict[str, int]
    failures: tuple[str, ...]

    @property
    def ran(self) -> int:
        """How many trials this call ran to their end."""
        return sum(self.statuses.values())


class Listener(Protocol):
    """What an executor reports to."""

    def ended(self, outcome: Outcome) -> None:
        """A trial ended."""

    def noticed(self, event: RunEvent) -> None:
        """Something else happened."""


class Observer(Listener, Protocol):
    """One who is told by the recorder; a context manager."""

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Recorder:
    """Stores every outcome, then tells the observers; a context manager and a `Listener`.

    Storing goes on beside the run (`tune.store_writer`): an outcome that could not be stored raises at the next call,
    and at the end of the block at the latest.

    Args:
        store: where.
        stored: ids of the trials that had ended before; if one runs again, its outcome is dropped.
        observers: in the order in which they are told, one call at a time, by whichever thread.
    """

    def __init__(self, store: Store, stored: Set[str], observers: Sequence[Observer]) -> None:
        self.failures: list[str] = []
        self.statuses: dict[str, int] = {}
        self._known, self._observers = stored, observers
        self._telling = threading.Lock()
        self._writer = StoreWriter(store, self._stored)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        for observer in self._observers:
            self._stack.enter_context(observer)
        self._stack.enter_context(self._writer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, value, trace)

    def ended(self, outcome: Outcome) -> None:
        """A trial ended: its row will be in the store when the observers hear of it."""
        if outcome.row["trial_id"] not in self._known:  # else it ran again only to keep the others company
            self._writer.write(outcome)

    def noticed(self, event: RunEvent) -> None:
        """Something else happened: passed on."""
        self._writer.check()
        with self._telling:
            for observer in self._observers:
                observer.noticed(event)

    def wait(self) -> None:
        """Return when every outcome so far is stored and told."""
        self._writer.wait()

    def _stored(self, outcome: Outcome) -> None:
        row = outcome.row
        with self._telling:
            self.statuses[row["status"]] = self.statuses.get(row["status"], 0) + 1
            if row["status"] == "failed":
                self.failures.append(f"{row['trial_id']}: {row['error']}")
            for observer in self._observers:
                observer.ended(outcome)
