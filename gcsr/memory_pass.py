"""One pass over the memory of weights, gradients and momentum: what it is told, whoever runs it.

`gcsr.native_pass` runs it on CPUs (C), `gcsr.triton_pass` on NVIDIA GPUs (Triton), from the same table and with the
same roundings: every product and sum is rounded on its own (no fused multiply-add), so that a penalty which cancels a
gradient exactly gives exactly 0, and results depend neither on the number of threads nor on which of them is first.
"""

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from gcsr.names import Regularizer

__all__ = ["Decision", "MemoryPass", "PassTensor", "TableEntry"]


class TableEntry(ctypes.Structure):
    """What a pass knows of one tensor, as `memory_pass.c` and `triton_pass.py` read it."""

    _fields_ = (
        ("w", ctypes.c_void_p),  # weights
        ("m", ctypes.c_void_p),  # momentum buffer, zeros before the first step; None without momentum
        ("g", ctypes.c_void_p),  # gradient; None: the tensor takes no part
        ("n", ctypes.c_int64),  # elements
        ("low", ctypes.c_int64),  # the range of them, in memory order, that is counted here
        ("high", ctypes.c_int64),
        ("penalty", ctypes.c_float),  # 2λ (L2) or λ (L1): what π is measured with
        ("lr", ctypes.c_float),
        ("momentum", ctypes.c_float),
        ("decay", ctypes.c_float),  # of the optimizer itself, where the method does not regularize
        ("l2", ctypes.c_float),  # 2 where L2 is imposed with strength lam_t, or 0
        ("l1", ctypes.c_float),  # lr where L1 is imposed with strength lam_t, or 0
        ("sign", ctypes.c_int32),  # π is measured with the penalty of L1
        ("group", ctypes.c_int32),  # which counts and which lam_t are its
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PassTensor:
    """What is fixed of one tensor.

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What the decision of a step is made of, and where it is noted; all on the tensors' device.

    Attributes:
        by_pi: λ is imposed where ``pi > mu`` (eq. 8); otherwise where ``certain``.
        lam: λ, 0-dim float32.
        mu: μ, 0-dim float64.
        certain: 0-dim bool.
        certain_lam: λ where ``certain``, or 0; 0-dim float32.
        sums: of the running epoch, added to: steps, π, imposed, Σ|g|; float64 ``[4]``.
        pi: gets the step's π, 0-dim float64; NaN where a gradient is not finite.
        lam_t: gets λ or 0, 0-dim float32.
    """

    by_pi: bool
    lam: Tensor
    mu: Tensor
    certain: Tensor
    certain_lam: Tensor
    sums: Tensor
    pi: Tensor
    lam_t: Tensor


class MemoryPass(ABC):
    """Passes over a fixed list of tensors, cut into blocks that are counted and updated one by one.

    Args:
        tensors: the tensors; where they, their gradients and momentum lie is written into `table`.
        block: elements of a block.

    Attributes:
        table: an entry a tensor.
        first_block: number of each tensor's first block, and of the block after the last.
    """

    def __init__(self, tensors: Sequence[PassTensor], block: int) -> None:
        self.table = (TableEntry * len(tensors))()
        self.first_block = [0]
        for entry, tensor in zip(self.table, tensors, strict=True):
            entry.n, entry.low, entry.high, entry.group = tensor.elements, tensor.low, tensor.high, tensor.group
            entry.penalty = 2 * tensor.lam if tensor.regularizer == "l2" else tensor.lam
            entry.sign = tensor.regularizer == "l1"
            self.first_block.append(self.first_block[-1] + -(-tensor.elements // block))

    @abstractmethod
    def run(self, *, count: bool, lam_t: Tensor | None = None) -> None:
        """One pass over memory: eq. 9's counts, or the update that `table` says, or both.

        Args:
            count: count, before the update.
            lam_t: float32, one number a group, on the tensors' device; read by the pass itself. None: no update.
        """

    @abstractmethod
    def totals(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the last counting `run`: coherent and n (int64), and Σ|g| over what was counted (float64), a number each
        group, on the tensors' device.
        """

    @abstractmethod
    def step(self, decision: Decision) -> None:
        """A whole step of the only group: count, decide, update. Where the decision does not wait for the count, one
        pass does both.
        """

    def after_capture(self) -> None:  # noqa: B027 # only GPUs have anything to do
        """To be called once a CUDA graph that holds a `run` is captured, before its first replay."""

    def refresh(self) -> None:  # noqa: B027 # only GPUs have anything to do
        """Let captured runs go on with the numbers that `table` has now; addresses stay those of their capture."""
