"""The compiled passes of `kernels.c`: built once a machine with its own C compiler, in a fraction of a second.

Where there is no compiler, `library` gives None and the gate works with torch's own operations: the same counts,
the same update to rounding, only slower. ``GCSR_NATIVE=0`` forces that.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gcsr.penalty import Regularizer

__all__ = ["NativePass", "ParameterPass", "PassTensor", "eligible", "library"]

_SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC")
_BUILD_SECONDS = 60
_PARALLEL_FROM = 1 << 17  # elements; waking other threads costs some microseconds


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("w", ctypes.c_void_p),
        ("m", ctypes.c_void_p),
        ("g", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("low", ctypes.c_int64),
        ("high", ctypes.c_int64),
        ("penalty", ctypes.c_float),
        ("lr", ctypes.c_float),
        ("momentum", ctypes.c_float),
        ("decay", ctypes.c_float),
        ("l2", ctypes.c_float),
        ("l1", ctypes.c_float),
        ("sign", ctypes.c_int32),
        ("first", ctypes.c_int32),
        ("group", ctypes.c_int32),
    )


class _Tally(ctypes.Structure):
    _fields_ = (("sum", ctypes.c_double), ("coherent", ctypes.c_int32), ("n", ctypes.c_int32))


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled library; None where it cannot be had."""
    if os.environ.get("GCSR_NATIVE") == "0":
        return None
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
    source = _SOURCE.read_text()
    key = hashlib.sha256("\0".join((source, compiler, *flags, _processor())).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gcsr"
    try:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(cache, os.W_OK) or cache.stat().st_uid != os.getuid():
            raise OSError  # what others may write is not ours to load
    except (OSError, RuntimeError):
        cache = Path(tempfile.mkdtemp(prefix="gcsr-"))
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


def eligible(params: Sequence[Tensor]) -> bool:
    """Whether the passes can take these parameters: plain float32 on the CPU, dense in memory."""
    return all(
        type(p) in (Tensor, torch.nn.Parameter)
        and p.device.type == "cpu"
        and p.dtype == torch.float32
        and p.layout == torch.strided
        and _dense(p)
        for p in params
    )


def _dense(tensor: Tensor) -> bool:
    """No gaps and no overlaps, in whatever order of dimensions."""
    expected = 1
    for size, stride in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda pair: (pair[1], pair[0])):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


@dataclass(frozen=True, kw_only=True, slots=True)
class PassTensor:
    """What the passes know of one tensor.

    Attributes:
        elements: how many it has.
        low, high: the range of them, in memory order, that is counted here; empty for none.
        lam: target λ, that π is measured with.
        regularizer: ``"l1"`` or ``"l2"``.
        group: which counts it is added to, and which λ is imposed on it.
    """

    elements: int
    low: int = 0
    high: int = 0
    lam: float = 0.0
    regularizer: Regularizer = "l2"
    group: int = 0


class NativePass:
    """Passes over a fixed list of tensors.

    Args:
        loaded: of `library`.
        tensors: the tensors; where they, their gradients and momentum lie is written into `table`.
        groups: number of groups.
    """

    def __init__(self, loaded: ctypes.CDLL, tensors: Sequence[PassTensor], groups: int = 1) -> None:
        self._call = loaded.gcsr_pass
        block = loaded.gcsr_block()
        self.table = (_Tensor * len(tensors))()
        firsts = [0]
        for entry, tensor in zip(self.table, tensors, strict=True):
            entry.n, entry.low, entry.high, entry.group = tensor.elements, tensor.low, tensor.high, tensor.group
            entry.penalty = 2 * tensor.lam if tensor.regularizer == "l2" else tensor.lam
            entry.sign = tensor.regularizer == "l1"
            firsts.append(firsts[-1] + -(-tensor.elements // block))
        self._first_block = (ctypes.c_int64 * len(firsts))(*firsts)
        self._tallies = (_Tally * max(1, firsts[-1]))()
        self._elements = sum(tensor.elements for tensor in tensors)
        self._counts = torch.zeros(2, groups, dtype=torch.int64)
        self._grad_sum = torch.zeros(groups, dtype=torch.float64)

    def run(self, *, count: bool, lam_t: Tensor | None = None) -> None:
        """One pass over memory: eq. 9's counts, or the update that `table` says, or both.

        Args:
            count: count, before the update.
            lam_t: float32, one number a group; read by the pass itself. None: no update.
        """
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
        """Of the last counting `run`: coherent and n (int64), and Σ|g| over what was counted (float64), a number each
        group.
        """
        coherent, n = self._counts.clone().unbind()
        return coherent, n, self._grad_sum.clone()


class ParameterPass(NativePass):
    """Passes over parameters and their ``.grad``, in one group.

    Args:
        loaded: of `library`.
        params: `eligible`.
        counted: index of a parameter → the range of its elements that is counted here; none of the others'.
        lam: target λ.
        regularizer: ``"l1"`` or ``"l2"``.
    """

    def __init__(
        self,
        loaded: ctypes.CDLL,
        params: Sequence[Tensor],
        counted: Mapping[int, tuple[int, int]],
        lam: float,
        regularizer: Regularizer,
    ) -> None:
        tensors = []
        for index, p in enumerate(params):
            low, high = counted.get(index, (0, 0))
            tensors.append(PassTensor(elements=p.numel(), low=low, high=high, lam=lam, regularizer=regularizer))
        super().__init__(loaded, tensors)
        self._params = list(params)
        self._strides = [p.stride() for p in self._params]

    def point(self) -> bool:
        """Look where weights and gradients are now; False if a gradient is not of its weight's dtype and layout."""
        for entry, p, strides in zip(self.table, self._params, self._strides, strict=True):
            g = p.grad
            if g is None:
                entry.g = None
                continue
            if g.dtype != torch.float32 or g.layout != torch.strided or p.stride() != strides:
                return False
            if g.stride() != strides and not (g.is_contiguous() and p.is_contiguous()):
                return False
            entry.g, entry.w = g.data_ptr(), p.data_ptr()
        return True

    def counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """`totals` of the only group: 0-dim."""
        coherent, n, grad_sum = self.totals()
        return coherent[0], n[0], grad_sum[0]
