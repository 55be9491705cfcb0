"""Several stores into one: the halves of a sweep that was divided, or what several machines measured."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tune.compaction import add, take_up, without_failed
from tune.folder import DamagedStoreError, permitted
from tune.manifest import joined
from tune.store import Store

__all__ = ["MergeOutcome", "merge_stores"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeOutcome:
    """What a merge did.

    Attributes:
        added: trials that were added.
        present: trials of the sources that were there already, each store's counted.
        conflicts: how many of these have another result there, which was kept.
    """

    added: int
    present: int
    conflicts: int


def merge_stores(sources: Sequence[Store], out: Store, *, on_rows: Callable[[int], None]) -> MergeOutcome:
    """Add to a store the trials that it lacks and others have; failed ones, which are to be run again, excepted.

    Of a trial that several have, the first one's is taken. Safe to kill: the same call goes on.

    Args:
        sources: stores to read, each of which a run may be writing to.
        out: a new store, or one to add to.
        on_rows: called with the number of epochs' rows that were copied, again and again.

    Raises:
        InvalidInputError: a store cannot be read, or is of other data; nothing was added.
        OSError: a store failed on the way, or ``out`` was taken over or deleted.
    """
    ended = [_ended(source) for source in sources]
    manifests = [(source, source.read_manifest() or {}) for source in sources]
    out.check_own()

    def copied(rows: int) -> None:
        out.check_held()
        on_rows(rows)

    with out.exclusive():
        there = _results(take_up(out))  # puts a damaged manifest out of the way, too
        out.write_manifest(joined([(out, out.read_manifest() or {}), *manifests]))
        added = present = conflicts = 0
        for source, rows in zip(sources, ended, strict=True):
            results = _results(rows)
            common = results.keys() & there.keys()
            present += len(common)
            conflicts += sum(results[name] != there[name] for name in common)
            new = rows.filter(pc.invert(pc.is_in(rows["trial_id"], pa.array(sorted(common), pa.string()))))
            if len(new):
                add(out, new, _epochs_of(source, new["trial_id"], copied))
            there |= results
            added += len(new)
    return MergeOutcome(added=added, present=present, conflicts=conflicts)


def _ended(source: Store) -> pa.Table:
    """The rows of the source's trials that ended and did not fail.

    Raises:
        StoreError: they may not be read.
        DamagedStoreError: one may be missing.
    """
    with permitted(source.location):
        trials = source.read_trials()
    if trials.damaged:
        raise DamagedStoreError(f"{trials.damaged[0]}; the command that filled the store runs it again, with --resume")
    return without_failed(trials.table)


def _results(rows: pa.Table) -> dict[str, tuple[Any, ...]]:
    """What each trial gave, as far as two machines should agree on it."""
    columns = (rows[name].to_pylist() for name in ("status", "test_accuracy", "epochs_run"))
    return dict(zip(rows["trial_id"].to_pylist(), zip(*columns, strict=True), strict=True))


def _epochs_of(source: Store, trials: pa.ChunkedArray, on_rows: Callable[[int], None]) -> Iterator[pa.Table]:
    wanted = trials.combine_chunks()
    try:
        for path in source.epoch_files():
            for piece in source.pieces(path, "epochs"):
                yield piece.filter(pc.is_in(piece["trial_id"], wanted))
                on_rows(len(piece))
    except FileNotFoundError:
        raise OSError(f"{source.location}: the run that writes there has just merged files") from None
