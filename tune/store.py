"""The Parquet store: the truth about which trials ended, and how.

``DIR/trials/ID.parquet`` and ``DIR/epochs/ID.parquet`` hold one trial each, written whole under a name made of the
trial's identity: writing a trial again replaces it and can never count it twice. The file under ``trials/`` is
written last, so a trial that is seen there has its epochs too. ``DIR`` is a path or a URI of pyarrow's filesystems.
"""

import contextlib
import fcntl
import io
import json
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from gcsr import InvalidInputError
from tune.schema import EPOCHS, TRIALS

__all__ = ["DamagedStoreError", "Store", "StoreError", "Trials"]

_MANIFEST = "sweep.json"
_LOCK = ".lock"
_BUSY = (".", "_")  # temporary names; pyarrow, DuckDB's and Polars' globs pass such files over


class StoreError(InvalidInputError):
    """The output directory cannot be used as asked."""


class DamagedStoreError(InvalidInputError):
    """A file of the store cannot be read."""


@dataclass(frozen=True, slots=True)
class Trials:
    """What is in ``trials/``.

    Attributes:
        table: the readable rows, with `TRIALS` as schema, ordered by trial id.
        damaged: one line for each file that could not be read, naming it.
    """

    table: pa.Table
    damaged: tuple[str, ...]


class Store:
    """A sweep's output directory.

    Args:
        location: a path, or a URI such as ``s3://bucket/prefix``.

    Raises:
        StoreError: the location cannot be understood.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        if re.match(r"[a-z][a-z0-9+.-]*:/(?!/)", location):
            raise StoreError(f"out: {location!r} is not allowed; expected a path, or SCHEME://… as s3://bucket/name")
        try:
            if "://" in location:
                self._fs, self._root = pafs.FileSystem.from_uri(location)
            else:
                self._fs, self._root = pafs.LocalFileSystem(), os.path.abspath(location)
        except (pa.ArrowInvalid, OSError, ValueError) as error:
            raise StoreError(f"out: {location!r} is no path or URI that pyarrow knows: {_line(error)}") from None
        self._root = self._root.rstrip("/") or "/"
        self.is_local = isinstance(self._fs, pafs.LocalFileSystem)

    def path(self, *parts: str) -> str:
        """A path inside the store, as its filesystem names it."""
        return "/".join((self._root, *parts))

    # -- the sweep it belongs to ------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether a sweep was started here."""
        there = (self._info(self.path(name)).type for name in (_MANIFEST, "trials"))
        return any(kind != pafs.FileType.NotFound for kind in there)

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Note which sweep this is: its spec and which trials it has."""
        self.write_json(_MANIFEST, manifest)

    def read_manifest(self) -> dict[str, Any] | None:
        """What `write_manifest` wrote; None if there is none.

        Raises:
            DamagedStoreError: it is there but cannot be read.
        """
        return self.read_json(_MANIFEST)

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write a small JSON object."""
        self.write_bytes(name, json.dumps(value, indent=2).encode())

    def read_json(self, name: str) -> dict[str, Any] | None:
        """What `write_json` wrote under that name; None if there is none.

        Raises:
            DamagedStoreError: it is there but cannot be read.
        """
        data = self.read_bytes(name)
        if data is None:
            return None
        try:
            value = json.loads(data)
        except ValueError as error:
            raise DamagedStoreError(f"{self.path(name)} is damaged: {_line(error)}") from None
        if not isinstance(value, dict):
            raise DamagedStoreError(f"{self.path(name)} is damaged: expected a JSON object")
        return value

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the right to write for one sweep on this machine; free again however the process ends.

        Raises:
            StoreError: another sweep holds it, or the directory cannot be written.
        """
        if not self.is_local:  # object stores have no locks; every write there is whole and idempotent anyway
            yield
            return
        root = Path(self._root)
        created = [folder for folder in (root, *root.parents) if not folder.exists()]
        handle = self._lock(root)
        try:
            yield
        finally:
            # Bad input may show up only now (no cluster, too few cores): it must leave nothing behind.
            if [path.name for path in root.iterdir()] == [_LOCK]:
                (root / _LOCK).unlink()
                with contextlib.suppress(OSError):
                    for folder in created:
                        folder.rmdir()
            os.close(handle)

    def _lock(self, root: Path) -> int:
        while True:
            try:
                root.mkdir(parents=True, exist_ok=True)
                handle = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise StoreError(f"out: {self.location!r} cannot be written: {error.strerror}") from None
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(handle)
                raise StoreError(
                    f"out: {self.location!r} is in use by another gcsr sweep; wait for it or stop it"
                ) from None
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(handle), os.stat(root / _LOCK)):
                    return handle
            os.close(handle)  # its last owner removed the file in between: lock the new one

    # -- trials -----------------------------------------------------------------------------------------------

    def write_trial(self, row: dict[str, Any], epochs: list[dict[str, Any]]) -> None:
        """Store one trial: its epochs, then its row. Each file appears whole; the row's appearance is the commit."""
        name = f"{row['trial_id']}.parquet"
        if epochs:
            self.write_bytes(f"epochs/{name}", _parquet(epochs, EPOCHS))
        self.write_bytes(f"trials/{name}", _parquet([row], TRIALS))

    def read_trials(self, columns: list[str] | None = None) -> Trials:
        """All rows of ``trials/`` that can be read, and the names of the files that cannot."""
        tables, damaged = [], []
        for info in self._list("trials"):
            try:
                with self._fs.open_input_file(info.path) as file:
                    tables.append(_conform(pq.read_table(file, columns=columns), columns))
            except (pa.ArrowException, OSError, ValueError, KeyError) as error:
                if self._info(info.path).is_file:
                    damaged.append(f"{info.path} is damaged: {_line(error)}")
        schema = TRIALS if columns is None else pa.schema([TRIALS.field(name) for name in columns])
        table = pa.concat_tables(tables) if tables else schema.empty_table()
        return Trials(table.sort_by("trial_id") if "trial_id" in table.column_names else table, tuple(damaged))

    def ended(self) -> set[str]:
        """Ids of the trials that need no run: all but the failed ones and those whose file is damaged."""
        table = self.read_trials(["trial_id", "status"]).table
        rows = zip(table["trial_id"].to_pylist(), table["status"].to_pylist(), strict=True)
        return {trial_id for trial_id, status in rows if status != "failed"}

    def epochs(self) -> pads.Dataset:
        """``epochs/`` as an Arrow data set."""
        files = [info.path for info in self._list("epochs")]
        return pads.dataset(files, schema=EPOCHS, filesystem=self._fs, format="parquet")

    # -- bytes ------------------------------------------------------------------------------------------------

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a whole file: on a local disk through a temporary name, elsewhere as one atomic put."""
        target = self.path(name)
        parent, _, base = target.rpartition("/")
        self._fs.create_dir(parent, recursive=True)
        if not self.is_local:
            with self._fs.open_output_stream(target) as stream:
                stream.write(data)
            return
        part = Path(parent) / f".{base}.{uuid.uuid4().hex}.part"
        try:
            with open(part, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)

    def read_bytes(self, name: str) -> bytes | None:
        """A whole file; None if it is not there."""
        if not self._info(self.path(name)).is_file:
            return None
        with self._fs.open_input_file(self.path(name)) as file:
            data: bytes = file.read()
        return data

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        if self._info(self.path(name)).is_file:
            self._fs.delete_file(self.path(name))

    def _info(self, path: str) -> pafs.FileInfo:
        try:
            return self._fs.get_file_info(path)
        except OSError as error:
            raise StoreError(f"out: {self.location!r} cannot be reached: {_line(error)}") from None

    def _list(self, folder: str) -> list[pafs.FileInfo]:
        if self._info(self.path(folder)).type == pafs.FileType.NotFound:
            return []
        found = self._fs.get_file_info(pafs.FileSelector(self.path(folder)))
        wanted = (i for i in found if i.is_file and i.extension == "parquet" and not i.base_name.startswith(_BUSY))
        return sorted(wanted, key=lambda info: info.path)


def _parquet(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    return buffer.getvalue()


def _conform(table: pa.Table, columns: list[str] | None) -> pa.Table:
    """`table` with the store's schema: columns that an older version did not have are null."""
    fields = TRIALS if columns is None else [TRIALS.field(name) for name in columns]
    arrays = []
    for field in fields:
        if field.name in table.column_names:
            arrays.append(table[field.name].cast(field.type))
        elif field.nullable:
            arrays.append(pa.nulls(len(table), field.type))
        else:
            raise KeyError(f"no column {field.name}")
    return pa.table(arrays, schema=pa.schema(fields))


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:160]
