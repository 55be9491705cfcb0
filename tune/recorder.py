"""What happens while trials run, told to all who want to know: the store first, then logs, metrics and the screen."""

import contextlib
from collections.abc import Sequence, Set
from types import TracebackType
from typing import Protocol, Self

from tune.compaction import SINGLES, compact
from tune.store import Store
from tune.trial import Outcome, checkpoint_name

__all__ = ["Listener", "Observer", "Recorder"]


class Listener(Protocol):
    """What an executor reports to."""

    def ended(self, outcome: Outcome) -> None:
        """A trial ended."""

    def noticed(self, event: str, **fields: object) -> None:
        """Something else happened: ``worker_lost``, ``node_joined``, ``node_left``, ``node_unfit``, or a ``pulse``.

        A pulse comes every few seconds on a cluster, with the numbers ``running`` and ``nodes``.
        """


class Observer(Listener, Protocol):
    """One who is told by the recorder; a context manager."""

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Recorder:
    """Stores every outcome at once, then tells the observers; a context manager and a `Listener`.

    Args:
        store: where.
        stored: ids of the trials that had ended before; if one runs again, its outcome is dropped.
        observers: in the order in which they are told.
    """

    def __init__(self, store: Store, stored: Set[str], observers: Sequence[Observer]) -> None:
        self.failures: list[str] = []
        self.statuses: dict[str, int] = {}
        self._store, self._stored, self._observers = store, stored, observers
        self._since_merge = SINGLES  # look at the first: an earlier run may have left many
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        for observer in self._observers:
            self._stack.enter_context(observer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, value, trace)
        if kind is None:
            compact(self._store)

    def ended(self, outcome: Outcome) -> None:
        """A trial ended: its row is on disk when the observers hear of it."""
        row = outcome.row
        if row["trial_id"] in self._stored:
            return  # it ran again only to keep the others company
        self._store.write_trial(row, outcome.epochs)
        self._store.remove(checkpoint_name(row["trial_id"]))
        self.statuses[row["status"]] = self.statuses.get(row["status"], 0) + 1
        if row["status"] == "failed":
            self.failures.append(f"{row['trial_id']}: {row['error']}")
        for observer in self._observers:
            observer.ended(outcome)
        self._since_merge += 1
        if self._since_merge >= SINGLES:
            compact(self._store)
            self._since_merge = 0

    def noticed(self, event: str, **fields: object) -> None:
        """Something else happened: passed on."""
        for observer in self._observers:
            observer.noticed(event, **fields)
