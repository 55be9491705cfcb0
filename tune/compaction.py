"""Few files whatever the number of trials: single-trial files are merged into parts, and small parts into larger ones.

A merge first writes the merged rows under ``compacting/``, where no other program looks; then removes the files that it
replaces; then makes the part visible. Killed at any point, it is completed by the next run (`recover`). A program that
looks in between may miss a trial, and never sees one twice; `Store` itself also reads ``compacting/`` and misses none.

Failed trials stay in files of their own, as they are run again and a part is never rewritten for one trial.
"""

import contextlib
import math
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from tune.folder import DamagedStoreError
from tune.store import MANIFEST, Store

__all__ = ["SINGLES", "add", "compact", "ended_rows", "recover", "take_up", "without_failed"]

SINGLES = 256  # single-trial files before they are merged
_HELD = 1024  # single-trial files whose rows are in memory at once
_FAN_IN = 16  # parts of one level before they are merged into one of the next
_PART = re.compile(r"part-(\d+)-[0-9a-f]{32}\.parquet")


def compact(store: Store, *, singles: int = SINGLES) -> None:
    """Merge where there is enough to merge. Only the store's one writer may call this.

    Args:
        store: the store.
        singles: merge single-trial files if there are at least so many.
    """
    for few in _held(_singles(store, "trials")):
        if len(few) >= singles:
            _merge_singles(store, few, singles)
    _merge_left_epochs(store, singles)
    for folder in ("trials", "epochs"):
        level = 0
        while True:
            parts = [i.base_name for i in store.files(folder) if _level(i) == level]
            if not parts:
                break
            if len(parts) >= _FAN_IN:
                _merge_parts(store, folder, parts, level + 1)
            level += 1


def take_up(store: Store) -> pa.Table:
    """Make a store ready for a run, whatever an earlier one left there when it was killed.

    Args:
        store: the store, held by this run.

    Returns:
        The rows of the trials that need no run: all but the failed ones and those whose file is damaged.

    Raises:
        OSError: the store cannot be read at the moment.
    """
    recover(store)  # first: what it puts out of the way has not ended
    ended = ended_rows(store)
    _discard_leftovers(store, set(ended["trial_id"].to_pylist()))
    return ended


def ended_rows(store: Store) -> pa.Table:
    """The readable rows of all trials but the failed ones, which run again."""
    return without_failed(store.read_trials().table)


def without_failed(rows: pa.Table) -> pa.Table:
    """The rows of trials that need no run."""
    return rows.filter(pc.not_equal(rows["status"], "failed"))


def add(store: Store, rows: pa.Table, epochs: Iterable[pa.Table]) -> None:
    """Add trials that ended elsewhere: all of them, or none. Only the store's one writer may call this.

    Args:
        store: the store, which has none of them, or has them as failed.
        rows: of ``trials``.
        epochs: their rows of ``epochs``.

    Raises:
        OSError: the store failed, or is not ours any more (`Store.check_held`); none was added.
    """
    part = _new_part(int(math.log(max(1, len(rows) / SINGLES), _FAN_IN)))
    names = {f"{name}.parquet" for name in rows["trial_id"].to_pylist()}
    failed = names.intersection(_singles(store, "trials"))
    # A run that was killed left epochs before it wrote their row.
    store.each(store.remove, [f"epochs/{name}" for name in sorted(names.intersection(_singles(store, "epochs")))])
    store.write_merged("epochs", part, [], epochs)
    store.check_held()  # else another run has those trials by now, perhaps
    store.write_merged("trials", part, sorted(failed), [rows])
    for folder, replaced in (("epochs", []), ("trials", sorted(failed))):
        _finish(store, folder, part, replaced)


def recover(store: Store) -> None:
    """Complete a merge that was killed, and put damaged files out of the way, so that their trials run again.

    Merged epochs are many and cost no trial: of them only the footers are looked at.

    Raises:
        OSError: the store cannot be read at the moment; what could not be read stays where it is.
    """
    try:
        store.read_manifest()
    except DamagedStoreError:
        store.move(MANIFEST, f"damaged/{MANIFEST}")  # it notes what was planned; what is there the store knows itself
    rotten = False
    for info in store.files("compacting"):
        folder, _, part = info.base_name.partition("-")
        if not store.is_readable(info.path, folder):
            rotten |= folder == "trials"
            store.move(f"compacting/{info.base_name}", f"damaged/{info.base_name}")
        elif (sources := store.sources(info.path)) or _has_rows(store, part):
            _finish(store, folder, part, sources)
        else:
            store.remove(f"compacting/{info.base_name}")  # epochs that were being added, before their rows were there
    trials, epochs = (_readable_by_name(store, folder) for folder in ("trials", "epochs"))
    lost = [name for name, readable in trials.items() if not readable or not epochs.get(name, True)]
    for name in lost:  # a row stands for a whole trial
        store.move(f"trials/{name}", f"damaged/trials-{name}")
    for name, readable in epochs.items():
        if not readable:
            store.move(f"epochs/{name}", f"damaged/epochs-{name}")
    if lost or rotten:
        _forget_epochs(store)


def _has_rows(store: Store, part: str) -> bool:
    """Whether the rows of epochs that were being added are there; a merge's are where they were before it."""
    return any(store.modified(name) is not None for name in (f"compacting/trials-{part}", f"trials/{part}"))


def _forget_epochs(store: Store) -> None:
    """Take out of merged epochs those without a row: their trials run again, and their epochs would be there twice."""
    rows = store.read_trials().table["trial_id"].combine_chunks()

    def kept(name: str) -> Iterator[pa.Table]:
        for piece in store.read_pieces("epochs", [name]):
            yield piece.filter(pc.is_in(piece["trial_id"], rows))

    for name in [info.base_name for info in store.files("epochs") if _PART.fullmatch(info.base_name)]:
        with contextlib.suppress(DamagedStoreError):  # it has only its footer; who reads it is told its name
            if sum(map(len, kept(name))) < sum(map(len, store.read_pieces("epochs", [name]))):
                part = _new_part(name.split("-")[1])
                store.write_merged("epochs", part, [name], kept(name))
                _finish(store, "epochs", part, [name])


def _discard_leftovers(store: Store, ended: Set[str]) -> None:
    """Remove what a killed run would have removed: checkpoints of trials that have ended, and halves of files."""
    for path in map(PurePosixPath, store.leftovers()):
        if path.stem in ended or path.suffix == ".part":
            store.remove(str(path))


def _readable_by_name(store: Store, folder: str) -> dict[str, bool]:
    def readable(name: str) -> bool:
        whole = folder == "trials" or not _PART.fullmatch(name)
        return store.is_readable(store.path(folder, name), folder, whole=whole)

    names = [info.base_name for info in store.files(folder)]
    return dict(zip(names, store.each(readable, names), strict=True))


def _new_part(level: int | str) -> str:
    return f"part-{level}-{uuid.uuid4().hex}.parquet"


def _level(info: pafs.FileInfo) -> int | None:
    match = _PART.fullmatch(info.base_name)
    return int(match[1]) if match else None


def _singles(store: Store, folder: str) -> list[str]:
    return [info.base_name for info in store.files(folder) if not _PART.fullmatch(info.base_name)]


def _held(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[start : start + _HELD] for start in range(0, len(names), _HELD))


def _merge_singles(store: Store, names: Sequence[str], singles: int) -> None:
    """Merge those of single trials that did not fail, if they are so many; each file is read once."""
    rows = _read(store, "trials", names)
    ended = {name: row for name, row in rows.items() if row is not None and row["status"].to_pylist() != ["failed"]}
    if len(ended) < singles:
        return
    curves = _read(store, "epochs", [name for name in _singles(store, "epochs") if name in ended])
    # A row stands for a whole trial: one whose epochs are damaged is left to `recover`.
    ended = {name: row for name, row in ended.items() if curves.get(name, row) is not None}
    # Rows first: epochs without a row are no harm, a row without its epochs would be.
    _write(store, "trials", list(ended), ended.values(), level=0)
    _write_curves(store, curves)


def _merge_left_epochs(store: Store, singles: int) -> None:
    """Merge single epochs whose rows are merged: those of a merge that was killed in between, if they are so many."""
    alone = set(_singles(store, "trials"))
    left = [name for name in _singles(store, "epochs") if name not in alone]
    if len(left) < singles:
        return
    rows = set(store.read_trials().table["trial_id"].to_pylist())  # of others the row is still to come
    for few in _held([name for name in left if name.removesuffix(".parquet") in rows]):
        _write_curves(store, _read(store, "epochs", few))


def _read(store: Store, folder: str, names: Sequence[str]) -> dict[str, pa.Table | None]:
    return dict(zip(names, store.read_each(folder, names), strict=True))


def _write_curves(store: Store, curves: Mapping[str, pa.Table | None]) -> None:
    readable = {name: curve for name, curve in curves.items() if curve is not None}
    _write(store, "epochs", list(readable), readable.values(), level=0)


def _merge_parts(store: Store, folder: str, names: Sequence[str], level: int) -> None:
    paths = [store.path(folder, name) for name in names]
    fit = store.each(lambda path: store.is_readable(path, folder, whole=False), paths)
    readable = [name for name, good in zip(names, fit, strict=True) if good]
    with contextlib.suppress(DamagedStoreError):  # who reads the store is told its name
        _write(store, folder, readable, store.read_pieces(folder, readable), level=level)


def _write(store: Store, folder: str, names: Sequence[str], tables: Iterable[pa.Table], *, level: int) -> None:
    if len(names) < 2:
        return
    part = _new_part(level)
    store.write_merged(folder, part, names, tables)
    _finish(store, folder, part, names)


def _finish(store: Store, folder: str, part: str, replaced: Sequence[str]) -> None:
    store.each(store.remove, [f"{folder}/{name}" for name in replaced])
    store.move(f"compacting/{folder}-{part}", f"{folder}/{part}")
