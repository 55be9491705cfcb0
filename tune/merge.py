"""Several stores into one: the halves of a sweep that was divided, or what several machines measured."""

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tune.compaction import add, take_up, without_failed
from tune.folder import DamagedStoreError, permitted
from tune.job import network_name, tensorboard_name
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
        files: trained networks and TensorBoard runs that were added.
    """

    added: int
    present: int
    conflicts: int
    files: int


def merge_stores(
    sources: Sequence[Store], out: Store, *, on_rows: Callable[[int], None], on_file: Callable[[], None]
) -> MergeOutcome:
    """Add to a store the trials that it lacks and others have; failed ones, which are to be run again, excepted.

    Of a trial that several have, the first one's is taken. Its trained network and its TensorBoard run come with it,
    and also where the trial is there with the same result, but they are not. Safe to kill: the same call goes on.

    Args:
        sources: stores to read, each of which a run may be writing to.
        out: a new store, or one to add to.
        on_rows: called with the number of epochs' rows that were copied, again and again.
        on_file: called when a network or a run was copied.

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
        added = present = conflicts = files = 0
        for source, rows in zip(sources, ended, strict=True):
            results = _results(rows)
            common = results.keys() & there.keys()
            present += len(common)
            agreed = {name for name in common if results[name] == there[name]}
            conflicts += len(common - agreed)
            new = rows.filter(pc.invert(_of(rows, common)))
            # Before their rows, as in a run: a trial that is there has its network.
            files += _copy_files(source, out, new, rows.filter(_of(rows, agreed)), on_file)
            if len(new):
                add(out, new, _epochs_of(source, new["trial_id"], copied))
            there = results | there
            added += len(new)
    return MergeOutcome(added=added, present=present, conflicts=conflicts, files=files)


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


def _of(rows: pa.Table, trials: Set[str]) -> pa.ChunkedArray:
    """Which rows are of these trials."""
    return pc.is_in(rows["trial_id"], pa.array(sorted(trials), pa.string()))


def _epochs_of(source: Store, trials: pa.ChunkedArray, on_rows: Callable[[int], None]) -> Iterator[pa.Table]:
    wanted = trials.combine_chunks()
    try:
        for path in source.epoch_files():
            for piece in source.pieces(path, "epochs"):
                yield piece.filter(pc.is_in(piece["trial_id"], wanted))
                on_rows(len(piece))
    except FileNotFoundError:
        raise OSError(f"{source.location}: the run that writes there has just merged files") from None


def _copy_files(source: Store, out: Store, new: pa.Table, known: pa.Table, on_file: Callable[[], None]) -> int:
    """Copy what else the source keeps of these trials, of the known ones only what is missing; how many files."""

    def copy(name: str) -> bool:
        data = source.read_bytes(name)
        if data is None:
            return False
        out.check_held()
        out.write_bytes(name, data)
        on_file()
        return True

    copied = 0
    for folder, name_of in (("networks", network_name), ("tensorboard", tensorboard_name)):
        kept = source.entries(folder)
        if kept:
            missing = kept - out.entries(folder)
            names = [
                name
                for rows, wanted in ((new, kept), (known, missing))
                for name in map(name_of, rows.to_pylist())
                if name in wanted
            ]
            copied += sum(out.each(copy, names))
    return copied
