"""The passes on CPUs: `kernels.c`, built once a machine with its own C compiler, in a fraction of a second.

Where there is no compiler, `library` gives None and the gate works with torch's own operations: the same counts,
the same update to rounding, only slower.
"""

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gcsr.files import cache_folder
from gcsr.memory_pass import MemoryPass, PassTensor

__all__ = ["NativePass", "library"]

_SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC")
_BUILD_SECONDS = 60
_PARALLEL_FROM = 1 << 17  # elements; waking other threads costs some microseconds


class _Tally(ctypes.Structure):
    _fields_ = (("sum", ctypes.c_double), ("coherent", ctypes.c_int32), ("n", ctypes.c_int32))


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled library; None where it cannot be had."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    # Not every compiler knows its own machine, or brings OpenMP (then the passes use one thread).
    for extra in (("-march=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), ()):
        try:
            loaded = ctypes.CDLL(str(_built(compiler, (*_FLAGS, *extra))))
        except (OSError, subprocess.SubprocessError):
            continue
        loaded.gcsr_pass.restype = None
        return loaded
    return None


def _built(compiler: str, flags: tuple[str, ...]) -> Path:
    """Path of the shared library, compiled if it is not there; appears whole, whoever else compiles it."""
    source = _SOURCE.read_text(encoding="utf-8")
    key = hashlib.sha256("\0".join((source, compiler, *flags, _processor())).encode()).hexdigest()[:16]
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(cache, os.W_OK) or cache.stat().st_uid != os.getuid():
            raise OSError  # what others may write is not ours to load
    except (OSError, RuntimeError):
        cache = Path(tempfile.mkdtemp(prefix="gcsr-"))
        atexit.register(shutil.rmtree, cache, ignore_errors=True)
    target = cache / f"kernels-{key}.so"
    if not target.exists():
        handle, part = tempfile.mkstemp(dir=cache, suffix=".so")
        os.close(handle)
        try:
            command = [compiler, *flags, "-o", part, str(_SOURCE), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=_BUILD_SECONDS)
            os.replace(part, target)
        finally:
            Path(part).unlink(missing_ok=True)
    return target


def _processor() -> str:
    """What `-march=native` depends on: a cache folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))
    except OSError:
        return platform.machine() + platform.processor()


class NativePass(MemoryPass):
    """Passes over float32 tensors in the processor's memory.

    Args:
        loaded: of `library`.
        tensors: see `MemoryPass`.
        groups: number of groups.
    """

    def __init__(self, loaded: ctypes.CDLL, tensors: Sequence[PassTensor], groups: int = 1) -> None:
        super().__init__(tensors, loaded.gcsr_block())
        self._call = loaded.gcsr_pass
        self._first_block = (ctypes.c_int64 * len(self.first_block))(*self.first_block)
        self._tallies = (_Tally * max(1, self.first_block[-1]))()
        self._elements = sum(tensor.elements for tensor in tensors)
        self._counts = torch.zeros(2, groups, dtype=torch.int64)
        self._grad_sum = torch.zeros(groups, dtype=torch.float64)

    def run(self, *, count: bool, lam_t: Tensor | None = None) -> None:
        if count:
            self._counts.zero_()
            self._grad_sum.zero_()
        threads = torch.get_num_threads() if self._elements >= _PARALLEL_FROM else 1
        counts = self._counts.data_ptr()
        self._call(
            self.table,
            ctypes.c_int64(len(self.table)),
            self._first_block,
            self._tallies,
            int(count),
            None if lam_t is None else ctypes.c_void_p(lam_t.data_ptr()),
            threads,
            ctypes.c_void_p(counts),
            ctypes.c_void_p(counts + 8 * self._counts.shape[1]),
            ctypes.c_void_p(self._grad_sum.data_ptr()),
        )

    def totals(self) -> tuple[Tensor, Tensor, Tensor]:
        coherent, n = self._counts.clone().unbind()
        return coherent, n, self._grad_sum.clone()
