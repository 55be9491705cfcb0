"""Data sets that lie behind a URI: each machine fetches them once, checked by checksum."""

import contextlib
import fcntl
import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from gcsr import DataError, InvalidInputError
from gcsr.arrays import Arrays, array_file, checksum_file, data_root, digest, load_arrays
from gcsr.files import cache_folder, write_atomically
from tune.filesystem import Files, one_line
from tune.words import short_digest

__all__ = ["UnfitNodeError", "check_digest", "local_arrays", "local_digest", "local_root"]

_CHUNK = 4 << 20  # bytes


class UnfitNodeError(Exception):
    """This machine has other data than a sweep's other machines, or its GPU failed: its trials are to run elsewhere."""


def local_root(data: str | None, name: str) -> str | None:
    """The folder of this machine to load a data set from.

    A folder is its own answer. From a URI ``NAME.npz`` is fetched into the user's cache folder, by one process of a
    machine while the others wait, unless the file of that checksum is there already.

    Args:
        data: data root: a folder, a URI that holds ``NAME.npz`` and ``NAME.npz.sha256``, or None for this machine's.
        name: of the data set.

    Raises:
        DataError: the URI cannot be read, or what it gave is not what the checksum says.
    """
    data = data or os.environ.get("GCSR_DATA") or None
    if data is None or "://" not in data or name == "digits":
        return data
    files = Files(data, "data")
    source = f"{files.root}/{array_file(name)}"
    expected = _noted_checksum(files, source, data)
    folder = _kept() / "fetched" / hashlib.sha256(data.encode()).hexdigest()[:16]
    with _alone(folder):
        target = folder / array_file(name)
        if not _is_there(target, expected):
            _fetch(files, source, target, expected)
    return str(folder)


def local_arrays(data: str | None, name: str) -> Arrays:
    """A data set's arrays on this machine; see `gcsr.arrays.load_arrays`.

    Raises:
        InvalidInputError: it is not there, or damaged.
    """
    return load_arrays(name, local_root(data, name))


@functools.lru_cache
def local_digest(data: str | None, name: str) -> str:
    """SHA-256 of a data set's content on this machine; found out once a process.

    Raises:
        InvalidInputError: it is not there, or damaged.
    """
    return digest(local_arrays(data, name))


def check_digest(data: str | None, name: str, expected: str) -> None:
    """Raise unless this machine's data set has that digest.

    Raises:
        UnfitNodeError: it has not, or is not there at all.
    """
    try:
        found = local_digest(data, name)
    except InvalidInputError as error:
        raise UnfitNodeError(str(error)) from None
    if found != expected:
        raise UnfitNodeError(
            f"dataset: {name} has the sha256 {short_digest(found)} here; expected {short_digest(expected)}"
        )


def _kept() -> Path:
    """This machine's own data root, also where ``GCSR_DATA`` is a URI."""
    return cache_folder() if "://" in os.environ.get("GCSR_DATA", "") else data_root(None)


def _noted_checksum(files: Files, source: str, data: str) -> str:
    noted = f"{source}.sha256"
    try:
        with files.reading(noted) as file:
            words = bytes(file.read()).decode().split()
    except (OSError, UnicodeDecodeError) as error:
        base = source.rpartition("/")[2]
        raise DataError(
            f"dataset: {data} must hold {base} and {base}.sha256, as gcsr data writes them: {one_line(error)}"
        ) from None
    if not words or len(words[0]) != 64:
        raise DataError(f"dataset: {noted} holds no SHA-256")
    return words[0]


def _is_there(target: Path, expected: str) -> bool:
    try:  # it was checked when it was fetched, and its checksum written last
        return target.exists() and checksum_file(target).read_text(encoding="utf-8").split()[:1] == [expected]
    except (OSError, UnicodeDecodeError):
        return False


def _fetch(files: Files, source: str, target: Path, expected: str) -> None:
    sha256 = hashlib.sha256()
    try:
        checksum_file(target).unlink(missing_ok=True)
        with files.reading(source) as incoming, write_atomically(target) as file:
            while chunk := bytes(incoming.read(_CHUNK)):
                sha256.update(chunk)
                file.write(chunk)
            if sha256.hexdigest() != expected:
                raise DataError(f"dataset: {source} has the sha256 {sha256.hexdigest()}; expected {expected}")
        with write_atomically(checksum_file(target)) as file:
            file.write(f"{expected}  {target.name}\n".encode())
    except OSError as error:
        raise DataError(f"dataset: {source} cannot be fetched: {one_line(error)}") from None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of this machine at a time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise DataError(f"dataset: {folder} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
