"""One writer at a time in a folder of a local disk: a lock that ends with its process, however that ends."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from gcsr import InvalidInputError
from tune.folder import LostStoreError

__all__ = ["folder_lock"]

_NAME = ".lock"


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[Callable[[], None]]:
    """Hold the folder, which is made if need be; one that is still empty at the end is removed again.

    Yields:
        A check, which raises a `LostStoreError` once the folder has been deleted or renamed: what is written under its
        name from then on would be another folder, which any other run may hold.

    Raises:
        InvalidInputError: another process holds it, or it cannot be written.
    """
    created = [each for each in (folder, *folder.parents) if not each.exists()]
    handle = _locked(folder)
    held = os.open(folder, os.O_RDONLY)  # open: no other folder can be given its number

    def check() -> None:
        try:
            there = os.path.samestat(os.fstat(held), os.stat(folder))
        except (FileNotFoundError, NotADirectoryError):
            there = False
        if not there:
            raise LostStoreError(f"out: {str(folder)!r} was deleted or renamed while this run wrote into it")

    try:
        yield check
    finally:
        # Bad input may show up only now (no cluster, too few cores): it must leave nothing behind.
        with contextlib.suppress(OSError):
            check()
            if [path.name for path in folder.iterdir()] == [_NAME]:
                (folder / _NAME).unlink()
                for each in created:
                    each.rmdir()
        os.close(held)
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
