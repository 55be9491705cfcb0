"""The Parquet store: the truth about which trials ended, and how.

``DIR/trials/ID.parquet`` and ``DIR/epochs/ID.parquet`` hold one trial each, written whole under a name made of the
trial's identity: writing a trial again replaces it and can never count it twice. The file under ``trials/`` is
written last, so a trial that is seen there has its epochs too. Where there are many, ``part-….parquet`` beside them
hold several trials each (`tune.compaction`). ``DIR`` is a path or a URI of pyarrow's filesystems.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from tune.filesystem import one_line
from tune.folder import DamagedStoreError, Folder, StoreError
from tune.folder_lock import folder_lock
from tune.lease import Lease
from tune.rows import PARQUET_FORMAT, conformed, first_of_each, parquet_bytes
from tune.schema import EPOCHS, TRIALS

if TYPE_CHECKING:
    import pyarrow.dataset as pads

__all__ = ["MANIFEST", "SEARCH", "SUGGESTIONS", "Store", "Trials"]

MANIFEST = "sweep.json"
SEARCH = "search.json"  # what a search is (`tune.search_identity`) …
SUGGESTIONS = "suggestions.json"  # … and what it suggested
_MANIFEST_KINDS: dict[str, Callable[[Any], bool]] = {
    "experiment": lambda value: isinstance(value, str),
    "spec": lambda value: isinstance(value, dict),
    "planned": lambda value: isinstance(value, int),
    "trials": lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value),
    "runs": lambda value: isinstance(value, list) and all(isinstance(each, dict) for each in value),
    "data": lambda value: isinstance(value, dict) and all(isinstance(each, str) for each in value.values()),
    "networks": lambda value: isinstance(value, dict) and all(isinstance(each, list) for each in value.values()),
}
_PART = "part-"  # begins the names of files that hold several trials (see `tune.compaction`)
_SOURCES = b"gcsr.sources"
_ROW_GROUP = 100_000  # rows
_SCHEMAS = {"trials": TRIALS, "epochs": EPOCHS}
_HIDDEN = (".", "_")  # begin names of files that pyarrow, DuckDB's and Polars' globs pass over: temporary ones


@dataclass(frozen=True, slots=True)
class Trials:
    """What is in ``trials/``.

    Attributes:
        table: the readable rows, with `TRIALS` as schema, ordered by trial id.
        damaged: one line for each file that could not be read, naming it.
    """

    table: pa.Table
    damaged: tuple[str, ...]


class Store(Folder):
    """A sweep's output directory.

    Args:
        location: a path, or a URI such as ``s3://bucket/prefix``.

    Raises:
        StoreError: the location cannot be understood.
    """

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self._check_held: Callable[[], None] | None = None  # of what `exclusive` holds

    # -- the sweep it belongs to ------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether a sweep was started here.

        Raises:
            StoreError: the store cannot be reached.
        """
        with self._reaching():
            there = (self._files.info(self.path(name)).type for name in (MANIFEST, "trials"))
            return any(kind != pafs.FileType.NotFound for kind in there)

    def check_own(self) -> None:
        """Raise unless what is here is a sweep's: noted as one, or without a whole Parquet file of something else.

        Raises:
            StoreError: it is something else's; or the store cannot be reached.
        """
        with self._reaching():
            noted = self._files.info(self.path(MANIFEST)).type != pafs.FileType.NotFound
            foreign = not noted and any(self._is_foreign(info.path) for info in self.files("trials"))
        if foreign:
            raise StoreError(
                f"out: {self.location!r} holds files of something else; expected a new folder or a sweep's"
            )

    def _is_foreign(self, path: str) -> bool:
        try:
            return not self._names_trials(path)
        except DamagedStoreError:
            return False

    def _names_trials(self, path: str) -> bool:
        """Whether a Parquet file says which trials its rows are of.

        Raises:
            DamagedStoreError: it is none.
        """
        with self._parsing(path) as file:
            return "trial_id" in pq.read_schema(file).names

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Note which sweep this is: its spec and which trials it has."""
        self.write_json(MANIFEST, manifest)

    def read_manifest(self) -> dict[str, Any] | None:
        """What `write_manifest` wrote; None if there is none.

        Raises:
            DamagedStoreError: it is there but cannot be read.
        """
        manifest = self.read_json(MANIFEST)
        for name, kind in _MANIFEST_KINDS.items():
            if manifest is not None and name in manifest and not kind(manifest[name]):
                raise DamagedStoreError(f"{self.path(MANIFEST)} is damaged: {name} is {manifest[name]!r:.40}")
        return manifest

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the right to write (`tune.folder_lock`, `tune.lease`); free again however the process ends.

        Raises:
            InvalidInputError: another run holds it, or the store cannot be written.
        """
        with contextlib.ExitStack() as held:
            if self.is_local:
                self._check_held = held.enter_context(folder_lock(Path(self._root)))
            else:
                bucket = self._root.split("/")[0]
                with self._reaching():
                    if self._files.info(bucket).type == pafs.FileType.NotFound:
                        raise StoreError(f"out: {self.location!r} cannot be written: there is no bucket {bucket}")
                    self._check_held = held.enter_context(Lease(self)).check
            try:
                yield
            finally:
                self._check_held = None

    def check_held(self) -> None:
        """Raise if the right to write that `exclusive` gave is lost.

        Raises:
            OSError: another run has taken a remote store over (`LostLeaseError`); it was deleted, or a folder renamed
                (`LostStoreError`).
        """
        if self._check_held is not None:
            self._check_held()

    # -- trials -----------------------------------------------------------------------------------------------

    def write_trial(self, row: dict[str, Any], epochs: list[dict[str, Any]]) -> None:
        """Store one trial: its epochs, then its row. Each file appears whole; the row's appearance is the commit."""
        name = f"{row['trial_id']}.parquet"
        if epochs:
            self.write_bytes(f"epochs/{name}", parquet_bytes(epochs, EPOCHS))
        self.write_bytes(f"trials/{name}", parquet_bytes([row], TRIALS))

    def read_trials(self) -> Trials:
        """All rows of ``trials/`` that can be read, and the names of the files that cannot.

        Complete also while another process merges files: what it takes away is in its place already.

        Raises:
            OSError: the store cannot be read at the moment.
        """

        def rows_or_damage(path: str) -> pa.Table | str:
            try:
                with self._parsing(path) as file:
                    return conformed(pq.read_table(file, page_checksum_verification=True), TRIALS)
            except DamagedStoreError as error:
                return str(error)

        while True:
            # Of a trial that is in two files the first counts: a file of its own is the newest.
            found, merging = self._listing("trials")
            paths = [i.path for i in sorted(found, key=lambda i: i.base_name.startswith(_PART)) + merging]
            try:
                read = self.each(rows_or_damage, paths)
                break
            except FileNotFoundError:
                continue  # a merge has just taken it away
        tables = [each for each in read if isinstance(each, pa.Table)]
        table = first_of_each(pa.concat_tables(tables)) if tables else pa.Table.from_batches([], TRIALS)
        return Trials(table.sort_by("trial_id"), tuple(each for each in read if isinstance(each, str)))

    def epochs(self, files: list[str] | None = None) -> "pads.Dataset":
        """``epochs/``, or these of `epoch_files`, as an Arrow data set."""
        found = self.epoch_files() if files is None else files
        import pyarrow.dataset as pads  # only here: it takes half a second, as it imports pandas

        return pads.dataset(found, schema=EPOCHS, filesystem=self._files.filesystem, format="parquet")

    def epoch_files(self) -> list[str]:
        """The files that hold every row of ``epochs/`` once."""
        while True:
            found, merging = self._listing("epochs")
            files = {info.path for info in found}
            try:
                for info in merging:
                    with contextlib.suppress(DamagedStoreError):  # who reads it names it
                        files -= {self.path("epochs", name) for name in self.sources(info.path)}
                    files.add(info.path)
                return sorted(files)
            except FileNotFoundError:
                continue  # that merge has just ended

    # -- Parquet files ----------------------------------------------------------------------------------------

    def files(self, folder: str) -> list[pafs.FileInfo]:
        """The complete Parquet files of a folder, by name."""
        found = self._files.list(self.path(folder))
        return [i for i in found if i.is_file and i.extension == "parquet" and not i.base_name.startswith(_HIDDEN)]

    def _listing(self, folder: str) -> tuple[list[pafs.FileInfo], list[pafs.FileInfo]]:
        """The files of a folder, and those of merges under way (or killed) that replace some of them.

        A merge that ends between the two listings would be in neither: then they are made again.
        """
        while True:
            found = self.files(folder)
            merging = [info for info in self.files("compacting") if info.base_name.startswith(f"{folder}-")]
            before = {info.base_name for info in found}
            if all(i.base_name in before for i in self.files(folder) if i.base_name.startswith(_PART)):
                return found, merging

    @contextlib.contextmanager
    def _parsing(self, path: str) -> Iterator[pa.NativeFile]:
        """A Parquet file to be parsed in the block.

        Raises:
            DamagedStoreError: its bytes are not what they should be.
            OSError: they cannot be had, which says nothing about them.
        """
        with self._files.reading(path) as file:
            try:
                yield file
            except (pa.ArrowException, OSError, ValueError, KeyError) as error:
                if isinstance(error, OSError) and error.errno is not None:  # a disk's; Parquet's own have no number
                    error.filename = path
                    raise
                raise DamagedStoreError(f"{path} is damaged: {one_line(error)}") from None

    def is_readable(self, path: str, folder: str, *, whole: bool = True) -> bool:
        """Whether a Parquet file can be read.

        Args:
            path: of the file.
            folder: whose rows it holds.
            whole: look at every row, not only at the footer.

        Raises:
            OSError: the store cannot be read at the moment.
        """
        try:
            if whole:
                for _ in self.pieces(path, folder):
                    pass
                return True
            return self._names_trials(path)
        except DamagedStoreError:
            return False

    def read_each(self, folder: str, names: Sequence[str]) -> list[pa.Table | None]:
        """The rows of each file of a folder; None in the place of one that is damaged."""

        def whole(name: str) -> pa.Table | None:
            try:
                with self._parsing(self.path(folder, name)) as file:
                    parquet = pq.ParquetFile(file, page_checksum_verification=True)
                    rows = parquet.read(use_threads=False)  # so small a file: threads would cost more
                    return conformed(rows, _SCHEMAS[folder])
            except DamagedStoreError:
                return None

        return self.each(whole, names)

    def read_pieces(self, folder: str, names: Sequence[str]) -> Iterator[pa.Table]:
        """The rows of some files of a folder, in order, a piece at a time.

        Raises:
            DamagedStoreError: one of them is damaged.
        """
        for name in names:
            yield from self.pieces(self.path(folder, name), folder)

    def pieces(self, path: str, folder: str) -> Iterator[pa.Table]:
        """The rows of a Parquet file, a piece at a time.

        Args:
            path: of the file.
            folder: whose rows it holds.

        Raises:
            DamagedStoreError: it is damaged.
        """
        with self._parsing(path) as file:
            for batch in pq.ParquetFile(file, page_checksum_verification=True).iter_batches(_ROW_GROUP):
                yield conformed(pa.Table.from_batches([batch]), _SCHEMAS[folder])

    def write_merged(self, folder: str, part: str, sources: Sequence[str], tables: Iterable[pa.Table]) -> None:
        """Write ``compacting/FOLDER-PART``: the rows of others, and their names.

        Args:
            folder: ``trials`` or ``epochs``.
            part: name of the file.
            sources: names of the files that it replaces.
            tables: their rows.
        """
        schema = _SCHEMAS[folder].with_metadata({_SOURCES: json.dumps(list(sources)).encode()})
        with (
            self._files.writing(self.path("compacting", f"{folder}-{part}")) as stream,
            pq.ParquetWriter(stream, schema, **PARQUET_FORMAT) as writer,
        ):
            waiting: list[pa.Table] = []
            for table in tables:
                waiting.append(table)
                if sum(map(len, waiting)) >= _ROW_GROUP:
                    writer.write_table(pa.concat_tables(waiting))
                    waiting = []
            if waiting:
                writer.write_table(pa.concat_tables(waiting))

    def sources(self, path: str) -> list[str]:
        """Names of the files that a merged one replaces."""
        with self._parsing(path) as file:
            names: list[str] = json.loads((pq.read_schema(file).metadata or {}).get(_SOURCES, b"[]"))
        return names

    def leftovers(self) -> list[str]:
        """Names of what a killed run may have left: checkpoints, and on a local disk halves of files."""
        names = [f"checkpoints/{info.base_name}" for info in self._files.list(self.path("checkpoints"))]
        for folder in ("trials", "epochs", "compacting") if self.is_local else ():
            found = self._files.list(self.path(folder))
            names += [f"{folder}/{info.base_name}" for info in found if info.base_name.endswith(".part")]
        return names
