"""A folder on a disk or an object store: whole files by name, and JSON objects in them."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from gcsr import InvalidInputError
from tune.filesystem import Files, one_line

__all__ = ["CONCURRENT", "DamagedStoreError", "Folder", "LostStoreError", "StoreError", "permitted"]

T = TypeVar("T")
R = TypeVar("R")
CONCURRENT = 16  # requests to an object store at once


class StoreError(InvalidInputError):
    """The output directory cannot be used as asked."""


class DamagedStoreError(InvalidInputError):
    """A file of the store cannot be read."""


class LostStoreError(OSError):
    """The store was deleted or renamed under a run, and the trials that had ended with it."""


@contextlib.contextmanager
def permitted(location: str) -> Iterator[None]:
    """Around what reads a store of which nothing is run: that nobody may is bad input.

    Raises:
        StoreError: nobody may.
    """
    try:
        yield
    except PermissionError as error:
        raise StoreError(f"dir: {location!r} cannot be read: {one_line(error)}") from None


class Folder:
    """A folder that a run writes to.

    Args:
        location: a path, or a URI such as ``s3://bucket/prefix``.
        offline: as for `tune.filesystem.Files`.

    Attributes:
        location: as given.
        is_local: whether it is on a disk.

    Raises:
        StoreError: the location cannot be understood.
    """

    def __init__(self, location: str, *, offline: bool = False) -> None:
        self.location = location
        try:
            self._files = Files(location, offline=offline)
        except InvalidInputError as error:
            raise StoreError(str(error)) from None
        self._root = self._files.root
        if self._root in ("", "/"):
            raise StoreError(f"out: {location!r} is not allowed; expected a folder of its own")
        self.is_local = self._files.is_local

    def is_same(self, other: "Folder") -> bool:
        """Whether it is the same folder, perhaps by another name."""
        return self._root == other._root and bool(self._files.filesystem.equals(other._files.filesystem))

    def path(self, *parts: str) -> str:
        """A path inside the folder, as its filesystem names it."""
        return "/".join((self._root, *parts))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a whole file: on a local disk through a temporary name, elsewhere as one atomic put."""
        with self._files.writing(self.path(name)) as stream:
            stream.write(data)

    def read_bytes(self, name: str) -> bytes | None:
        """A whole file; None if it is not there."""
        try:
            with self._files.reading(self.path(name)) as file:
                data: bytes = file.read()
        except FileNotFoundError:
            return None
        return data

    def entries(self, name: str) -> set[str]:
        """Names, as `read_bytes` takes them, of the files in and below a folder of this one; none without it."""
        found = self._files.list(self.path(name), recursive=True)
        return {info.path.removeprefix(self.path("")) for info in found if info.is_file}

    def modified(self, name: str) -> float | None:
        """When a file was last written, in seconds by the folder's clock; None if it is not there."""
        info = self._files.info(self.path(name))
        return info.mtime.timestamp() if info.is_file and info.mtime is not None else None

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        self._files.remove(self.path(name))

    def move(self, name: str, target: str) -> None:
        """Give a file another name; where that is not atomic, it has both names for a moment."""
        self._files.move(self.path(name), self.path(target))

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
            value = json.loads(data.decode())  # as it was written: bytes alone make json guess, at UTF-16 and others
        except (ValueError, RecursionError) as error:
            raise DamagedStoreError(f"{self.path(name)} is damaged: {one_line(error)}") from None
        if not isinstance(value, dict):
            raise DamagedStoreError(f"{self.path(name)} is damaged: expected a JSON object")
        return value

    def each(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """The function of each item, in order: on an object store many at once, as each waits for the network."""
        if self.is_local or len(items) < 2:
            return [function(item) for item in items]
        with ThreadPoolExecutor(min(CONCURRENT, len(items)), "gcsr-store") as pool:
            return list(pool.map(function, items))

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """Around what comes before a run: there a store that does not answer is bad input, later it ends the run."""
        try:
            yield
        except OSError as error:
            raise StoreError(f"out: {self.location!r} cannot be reached: {one_line(error)}") from None
