"""Temporary folders that are removed also where their process was killed: by the next one that makes some."""

import contextlib
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["scratch_folder"]

_LOCK = ".lock"


@contextlib.contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder, removed at the end of the block, and with it those whose processes were killed.

    Its process holds a lock in it, which ends with the process, however that ends: so the dead's are told from the
    living's.

    Args:
        prefix: begins the names of such folders, and of no others.
    """
    prefix = f"{prefix}{os.uname().nodename}-"  # a lock may be unknown to other machines with whom the disk is shared
    _remove_left(prefix)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        handle = _locked(folder)
        if handle is not None:
            break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _locked(folder: Path) -> int | None:
    """The lock of a new folder; None if somebody took it for left, as it was not locked yet, and removes it."""
    path = folder / _LOCK
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), os.stat(path)):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:  # a disk without locks: nobody will take it for left
        return handle
    os.close(handle)
    return None


def _remove_left(prefix: str) -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{glob.escape(prefix)}*"):
        with contextlib.suppress(OSError):  # as where its process lives, it is another user's, or it holds no lock yet
            if folder.is_symlink():
                continue
            handle = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)
