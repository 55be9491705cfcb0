"""The pass over memory on CPUs: `memory_pass.c`, called through ctypes."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from gcsr.compiled import compiled
from gcsr.memory_pass import Decision, MemoryPass, PassTensor

__all__ = ["NativePass", "Stepping"]

_PARALLEL_FROM = 1 << 17  # elements; waking other threads costs some microseconds


class _Tally(ctypes.Structure):
    _fields_ = (("sum", ctypes.c_double), ("coherent", ctypes.c_int32), ("n", ctypes.c_int32))


_NOTED = ("lam", "mu", "certain", "certain_lam", "sums", "pi", "lam_t")  # where they lie, in this order


class _Decision(ctypes.Structure):
    _fields_ = (*((name, ctypes.c_void_p) for name in _NOTED), ("by_pi", ctypes.c_int32))


class Stepping(ctypes.Structure):
    """A step as other compiled code takes it: `memory_pass.c`'s function, and what it is called with, in this order."""

    _fields_ = (
        ("function", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("number", ctypes.c_int64),
        ("first_block", ctypes.c_void_p),
        ("tallies", ctypes.c_void_p),
        ("decision", ctypes.c_void_p),
        ("threads", ctypes.c_int32),
    )


def _library() -> ctypes.CDLL | None:
    # Each operation is rounded on its own: a penalty that cancels a gradient exactly gives exactly 0.
    return compiled("memory_pass.c", "off")


class NativePass(MemoryPass):
    """Passes over float32 tensors in the processor's memory.

    Args:
        tensors: see `MemoryPass`.
        groups: number of groups.
    """

    def __init__(self, tensors: Sequence[PassTensor], groups: int = 1) -> None:
        loaded = _library()
        assert loaded is not None, "ask available() first"
        super().__init__(tensors, loaded.gcsr_block())
        self._library = loaded
        self._first_block = (ctypes.c_int64 * len(self.first_block))(*self.first_block)
        self._tallies = (_Tally * max(1, self.first_block[-1]))()
        self._elements = sum(tensor.elements for tensor in tensors)
        self._counts = torch.zeros(2, groups, dtype=torch.int64, device="cpu")
        self._grad_sum = torch.zeros(groups, dtype=torch.float64, device="cpu")
        self._decision: tuple[Decision, _Decision] | None = None  # the last one, and as C takes it

    @staticmethod
    def available() -> bool:
        """Whether this machine can have it."""
        return _library() is not None

    @property
    def _threads(self) -> int:
        return torch.get_num_threads() if self._elements >= _PARALLEL_FROM else 1

    def run(self, *, count: bool, lam_t: Tensor | None = None) -> None:
        if count:
            self._counts.zero_()
            self._grad_sum.zero_()
        counts = self._counts.data_ptr()
        self._library.gcsr_pass(
            self.table,
            ctypes.c_int64(len(self.table)),
            self._first_block,
            self._tallies,
            int(count),
            None if lam_t is None else ctypes.c_void_p(lam_t.data_ptr()),
            self._threads,
            ctypes.c_void_p(counts),
            ctypes.c_void_p(counts + 8 * self._counts.shape[1]),
            ctypes.c_void_p(self._grad_sum.data_ptr()),
        )

    def totals(self) -> tuple[Tensor, Tensor, Tensor]:
        coherent, n = self._counts.clone().unbind()
        return coherent, n, self._grad_sum.clone()

    def step(self, decision: Decision) -> None:
        self._library.gcsr_step(
            self.table,
            ctypes.c_int64(len(self.table)),
            self._first_block,
            self._tallies,
            self._threads,
            ctypes.byref(self._in_c(decision)),
        )

    def stepping(self, decision: Decision) -> Stepping:
        """`step` for other compiled code; good as long as this pass and the decision are there."""
        return Stepping(
            function=ctypes.cast(self._library.gcsr_step, ctypes.c_void_p),
            table=ctypes.addressof(self.table),
            number=len(self.table),
            first_block=ctypes.addressof(self._first_block),
            tallies=ctypes.addressof(self._tallies),
            decision=ctypes.addressof(self._in_c(decision)),
            threads=self._threads,
        )

    def _in_c(self, decision: Decision) -> _Decision:
        if self._decision is None or self._decision[0] is not decision:
            places = {name: getattr(decision, name).data_ptr() for name in _NOTED}
            self._decision = decision, _Decision(by_pi=decision.by_pi, **places)
        return self._decision[1]
