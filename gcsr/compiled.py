"""C sources of this package, built once a machine with its own C compiler, in about a second.

Where there is no compiler, `compiled` gives None and torch's own operations do the same: the same counts, the same
update to rounding, only slower.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from gcsr.errors import DataError
from gcsr.files import cache_folder

__all__ = ["compiled", "native_allowed"]

_FLAGS = ("-O3", "-fno-math-errno", "-shared", "-fPIC")
_DIGEST_SIZE = hashlib.sha256().digest_size  # bytes that stand behind the library


def native_allowed() -> bool:
    """Whether compiled code may be used: ``GCSR_NATIVE=0`` forbids it."""
    return os.environ.get("GCSR_NATIVE") != "0"


@functools.cache
def compiled(name: str, contract: Literal["fast", "off"]) -> ctypes.CDLL | None:
    """The library made of ``name``, a file of this package; None where it cannot be had.

    Args:
        name: such as ``memory_pass.c``.
        contract: whether a product and a sum may become one operation, which rounds once.
    """
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    try:
        with _folder() as folder:
            return _loaded(Path(__file__).with_name(name), compiler, contract, folder)
    except OSError:
        return None


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """Where libraries are kept; where that cannot be, a folder that is removed again: what is loaded stays loaded.

    Raises:
        OSError: there is none that a library could be loaded from.
    """
    if (cache := _cache()) is not None:
        yield cache
        return
    with tempfile.TemporaryDirectory(prefix="gcsr-", ignore_cleanup_errors=True) as folder:
        if not _may_run(folder):
            raise OSError
        yield Path(folder)


def _cache() -> Path | None:
    try:
        cache = cache_folder() / "compiled"  # a folder of its own: others may be given the data beside it, not code
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = cache.stat()
    except (OSError, DataError):
        return None
    others = found.st_uid != os.getuid() or found.st_mode & 0o022  # what others may write is not ours to load
    return cache if not others and os.access(cache, os.W_OK) and _may_run(cache) else None


def _may_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a library can be loaded from there: hardened machines mount some disks ``noexec``."""
    return not os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0)  # Python knows the flag on Linux


def _loaded(source: Path, compiler: str, contract: Literal["fast", "off"], folder: Path) -> ctypes.CDLL | None:
    """The source's library, with the best flags that the compiler takes; None where it takes none."""
    # Not every compiler knows its own machine, or brings OpenMP (then one thread is used).
    # Each twice: a compiler that was killed, or a full disk, is no reason for flags that round otherwise.
    flag_sets = (("-march=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), ())
    for extra in (flags for flags in flag_sets for _ in range(2)):
        flags = (*_FLAGS, f"-ffp-contract={contract}", *extra)
        try:
            library = _built(source, compiler, flags, folder)
        except (OSError, subprocess.CalledProcessError):
            continue
        try:
            return ctypes.CDLL(str(library))
        except OSError:  # whole, but of another machine's kind: to be built again
            with contextlib.suppress(OSError):
                library.unlink()
    return None


def _built(source: Path, compiler: str, flags: tuple[str, ...], folder: Path) -> Path:
    """Path of the shared library, compiled if it is not there; appears whole, whoever else compiles it."""
    text = source.read_text(encoding="utf-8")
    key = hashlib.sha256("\0".join((text, compiler, *flags, _processor())).encode()).hexdigest()[:16]
    target = folder / f"{source.stem}-{key}.so"
    if not _is_whole(target):
        handle, part = tempfile.mkstemp(dir=folder, suffix=".so")
        os.close(handle)
        try:
            command = [compiler, *flags, "-o", part]
            # Nothing first: flags that it lacks, or a library of theirs, are found missing before a second is spent.
            # However long it takes: other flags round otherwise, so none are taken because this machine stood still.
            for given in (("-x", "c", os.devnull), (str(source),)):
                subprocess.run([*command, *given, "-lm"], check=True, capture_output=True)
            with open(part, "r+b") as file:
                file.write(hashlib.sha256(file.read()).digest())  # behind what the linker reads
                file.flush()
                os.fsync(file.fileno())  # or a power cut might leave the name and no library
            os.replace(part, target)
        finally:
            Path(part).unlink(missing_ok=True)
    return target


def _is_whole(library: Path) -> bool:
    """Whether it is there as `_built` wrote it: to load one that is cut short kills the process."""
    try:
        data = library.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(data[:-_DIGEST_SIZE]).digest() == data[-_DIGEST_SIZE:]


def _processor() -> str:
    """What `-march=native` depends on: a cache folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        known = sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))})
    except OSError:
        known = [platform.processor()]
    return platform.machine() + "".join(known)  # an emulator shows the processor that it runs on
