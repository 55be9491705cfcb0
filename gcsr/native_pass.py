"""The pass over memory on CPUs: `memory_pass.c`, called through ctypes."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from gcsr.compiled import compiled
from gcsr.memory_pass import MemoryPass, PassTensor

__all__ = ["NativePass"]

_PARALLEL_FROM = 1 << 17  # elements; waking other threads costs some microseconds


class _Tally(ctypes.Structure):
    _fields_ = (("sum", ctypes.c_double), ("coherent", ctypes.c_int32), ("n", ctypes.c_int32))


def _library() -> ctypes.CDLL | None:
    # Each operation is rounded on its own: a penalty that cancels a gradient exactly gives exactly 0.
    return compiled("memory_pass.c", "off")


class NativePass(MemoryPass):
    """Passes over float32 tensors in the processor's memory.

    Args:
        tensors: see `MemoryPass`.
        groups: number of groups.

    Attributes:
        function: the compiled one.
        blocks: `MemoryPass.first_block`, for the function.
        tallies: what it found in each block.
        counts: coherent and n of each group, int64 ``[2, groups]``.
        grad_sum: Σ|g| of each group, float64 ``[groups]``.
    """

    def __init__(self, tensors: Sequence[PassTensor], groups: int = 1) -> None:
        loaded = _library()
        assert loaded is not None, "ask available() first"
        super().__init__(tensors, loaded.gcsr_block())
        self.function = loaded.gcsr_pass
        self.blocks = (ctypes.c_int64 * len(self.first_block))(*self.first_block)
        self.tallies = (_Tally * max(1, self.first_block[-1]))()
        self._elements = sum(tensor.elements for tensor in tensors)
        self.counts = torch.zeros(2, groups, dtype=torch.int64)
        self.grad_sum = torch.zeros(groups, dtype=torch.float64)

    @staticmethod
    def available() -> bool:
        """Whether this machine can have it."""
        return _library() is not None

    def run(self, *, count: bool, lam_t: Tensor | None = None) -> None:
        if count:
            self.counts.zero_()
            self.grad_sum.zero_()
        threads = torch.get_num_threads() if self._elements >= _PARALLEL_FROM else 1
        counts = self.counts.data_ptr()
        self.function(
            self.table,
            ctypes.c_int64(len(self.table)),
            self.blocks,
            self.tallies,
            int(count),
            None if lam_t is None else ctypes.c_void_p(lam_t.data_ptr()),
            threads,
            ctypes.c_void_p(counts),
            ctypes.c_void_p(counts + 8 * self.counts.shape[1]),
            ctypes.c_void_p(self.grad_sum.data_ptr()),
        )

    def totals(self) -> tuple[Tensor, Tensor, Tensor]:
        coherent, n = self.counts.clone().unbind()
        return coherent, n, self.grad_sum.clone()
