"""Writes to the store beside the run: who hands an outcome over waits neither for the disk nor for the network."""

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self, TypeVar

from tune.compaction import SINGLES, compact
from tune.folder import CONCURRENT
from tune.job import Outcome, checkpoint_name
from tune.store import Store

__all__ = ["StoreWriter"]

T = TypeVar("T")
_WAITING = 256  # outcomes that are handed over and not yet stored, at most


class StoreWriter:
    """Stores outcomes in threads of its own, and merges files when there are many; a context manager.

    On a local disk one is stored after the other, on an object store many at once: it is not slow, only far away.
    Leaving the block waits until all is stored.

    Args:
        store: where.
        stored: called with each outcome once its row can be read by others; by any thread.
    """

    def __init__(self, store: Store, stored: Callable[[Outcome], None]) -> None:
        self._store, self._stored = store, stored
        self._writers = ThreadPoolExecutor(1 if store.is_local else CONCURRENT, "gcsr-store")
        self._merger = ThreadPoolExecutor(1, "gcsr-merge")
        self._merging: Future[None] | None = None
        self._since_merge = SINGLES  # look at the first: an earlier run may have left many
        self._waiting: set[Future[None]] = set()
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writers.shutdown(wait=True)
        self._merger.shutdown(wait=True)
        if kind is None:
            self.check()
            compact(self._store)

    def check(self) -> None:
        """Raise what went wrong with an earlier outcome, or that the store is not ours any more."""
        if self._error is not None:
            raise self._error
        self._store.check_held()

    def write(self, outcome: Outcome) -> None:
        """Have an outcome stored; waits only where too many are waiting already.

        Raises:
            OSError, pyarrow.ArrowException: an earlier one could not be stored.
        """
        self.check()
        if len(self._waiting) >= _WAITING:
            self._waiting = wait(self._waiting, return_when=FIRST_COMPLETED).not_done
        self._waiting.add(self._writers.submit(self._guarded, self._write, outcome))
        self._since_merge += 1
        if self._since_merge >= SINGLES and (self._merging is None or self._merging.done()):
            self._since_merge = 0
            self._merging = self._merger.submit(self._guarded, compact, self._store)

    def wait(self) -> None:
        """Return when everything handed over is stored.

        Raises:
            OSError, pyarrow.ArrowException: something could not be.
        """
        self._waiting = wait(self._waiting).not_done
        self.check()

    def _write(self, outcome: Outcome) -> None:
        self._store.write_trial(outcome.row, outcome.epochs)
        if outcome.row["status"] != "failed":  # that one is run again, and need not begin anew
            self._store.remove(checkpoint_name(outcome.row["trial_id"]))
        self._stored(outcome)

    def _guarded(self, work: Callable[[T], None], item: T) -> None:
        """In a thread: the first error is kept for the thread that hands outcomes over, and ends all other work."""
        if self._error is not None:
            return  # a store that is gone would be waited for once an outcome
        try:
            self._store.check_held()
            work(item)
        except BaseException as error:
            self._error = self._error or error
