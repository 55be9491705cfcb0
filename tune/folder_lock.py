"""One writer at a time in a folder of a local disk: a lock that ends with its process, however that ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from gcsr import InvalidInputError

__all__ = ["folder_lock"]

_NAME = ".lock"


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the folder, which is made if need be; one that is still empty at the end is removed again.

    Raises:
        InvalidInputError: another process holds it, or it cannot be written.
    """
    created = [each for each in (folder, *folder.parents) if not each.exists()]
    handle = _locked(folder)
    try:
        yield
    finally:
        # Bad input may show up only now (no cluster, too few cores): it must leave nothing behind.
        if [path.name for path in folder.iterdir()] == [_NAME]:
            (folder / _NAME).unlink()
            with contextlib.suppress(OSError):
                for each in created:
                    each.rmdir()
        os.close(handle)


def _locked(folder: Path) -> int:
    path = folder / _NAME
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InvalidInputError(f"out: {str(folder)!r} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if not isinstance(error, BlockingIOError):
                raise InvalidInputError(f"out: {str(folder)!r} cannot be locked: {error.strerror}") from None
            line = f"out: {str(folder)!r} is in use by another gcsr run; wait for it or stop it"
            raise InvalidInputError(line) from None
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)  # its last owner removed the file in between: lock the new one
