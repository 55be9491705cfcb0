"""Files that appear whole or not at all."""

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from gcsr.errors import DataError

__all__ = ["cache_folder", "write_atomically"]


def cache_folder() -> Path:
    """``gcsr/`` in the user's cache folder, which may not be there yet.

    Raises:
        DataError: the user has no home folder, as one whom a container does not know.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gcsr"
    except RuntimeError:
        raise DataError("data: this user has no home folder; name a folder with --data or GCSR_DATA") from None


@contextmanager
def write_atomically(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the name ``path`` when the block ends well, and leaves nothing otherwise.

    The bytes are on disk before the name is, so a power cut leaves the old file or the new one. What a link leads to is
    replaced, not the link, and keeps its rights; a device or a pipe is written to.
    """
    found: os.stat_result | None = None
    with suppress(FileNotFoundError):
        found = path.stat()
    if found is not None and not stat.S_ISREG(found.st_mode):
        with open(path, "wb") as file:
            yield file
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with open(part, "xb") as file:  # with the rights that a file of this user has: others may share the folder
            yield file
            file.flush()
            os.fsync(file.fileno())
            if found is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(found.st_mode))
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
