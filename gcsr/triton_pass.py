"""The passes on NVIDIA GPUs: one Triton kernel over all tensors, launched without waiting for anything."""

import contextlib
import ctypes
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from gcsr.memory_pass import Decision, MemoryPass, PassTensor
from gcsr.triton_kernel import BLOCK, WARPS, decision_kernel, pass_kernel

__all__ = ["TritonPass"]

_TABLES = 2  # at most in a capture: a step has two runs, and nothing moves between them as a rule


class TritonPass(MemoryPass):
    """Passes over float32 tensors in a GPU's memory.

    The table is copied to the device when it changes, which is when a gradient lies elsewhere or a learning rate is
    new. A pass that is captured into a CUDA graph takes the addresses from a table of its own, filled by
    `after_capture`, and all else from the one that changes.

    Args:
        device: where the tensors are.
        tensors: see `MemoryPass`.
        groups: number of groups.
    """

    def __init__(self, device: torch.device, tensors: Sequence[PassTensor], groups: int = 1) -> None:
        super().__init__(tensors, BLOCK)
        self._device = device
        self._blocks = self.first_block[-1]
        spans = enumerate(itertools.pairwise(self.first_block))
        tensor_of = [index for index, (first, after) in spans for _ in range(first, after)]
        self._tensor_of = torch.tensor(tensor_of, dtype=torch.int32, device=device)
        self._first_block = torch.tensor(self.first_block, dtype=torch.int32, device=device)
        self._blocks_of = self._of_groups([tensors[index].group for index in tensor_of], groups)
        # One block more than there are, of zeros: where groups have different numbers of blocks, it fills up.
        self._counts = torch.zeros(2, self._blocks + 1, dtype=torch.int32, device=device)
        self._sums = torch.zeros(self._blocks + 1, dtype=torch.float32, device=device)
        self._no_lam = torch.zeros(groups, dtype=torch.float32, device=device)
        self._words = torch.zeros(ctypes.sizeof(self.table) // 8, dtype=torch.int64, device=device)  # the table there
        self._uploaded, self._uploaded_aligned = b"", False  # what it is
        self._captured: dict[bytes, Tensor] = {}  # tables of the capture under way
        self._reserve: list[Tensor] = []
        self._kept: list[Tensor] = []  # tables of captured passes: a graph keeps nothing alive
        self._fill_reserve()

    def _of_groups(self, group_of: Sequence[int], groups: int) -> Tensor:
        """The blocks of each group: int64 ``[groups, most blocks of a group]``."""
        blocks: list[list[int]] = [[] for _ in range(groups)]
        for block, group in enumerate(group_of):
            blocks[group].append(block)
        most = max(map(len, blocks), default=0)
        filled = [each + [self._blocks] * (most - len(each)) for each in blocks]
        return torch.tensor(filled, dtype=torch.int64, device=self._device).view(groups, most)

    def run(self, *, count: bool, lam_t: Tensor | None = None) -> None:
        if not self._blocks:
            return
        addresses, aligned = self._addresses()
        with self._on_device():
            pass_kernel[(self._blocks,)](
                addresses,
                self._words.view(torch.float32),
                self._words.view(torch.int32),
                self._tensor_of,
                self._first_block,
                self._no_lam if lam_t is None else lam_t,
                self._counts,
                self._sums,
                self._blocks + 1,
                COUNT=count,
                UPDATE=lam_t is not None,
                ALIGNED=aligned,
                SIZE=BLOCK,
                num_warps=WARPS,
                enable_fp_fusion=False,
            )

    def totals(self) -> tuple[Tensor, Tensor, Tensor]:
        coherent, n = self._counts[:, self._blocks_of].sum(-1, dtype=torch.int64).unbind()
        return coherent, n, self._sums[self._blocks_of].sum(-1, dtype=torch.float64)

    def step(self, decision: Decision) -> None:
        if decision.by_pi:
            self.run(count=True)
            self._decide(decision)
            self.run(count=False, lam_t=decision.lam_t)
        else:
            self.run(count=True, lam_t=decision.certain_lam)
            self._decide(decision)

    def _decide(self, decision: Decision) -> None:
        """The decision of the last counting `run`."""
        with self._on_device():
            decision_kernel[(1,)](
                self._counts,
                self._sums,
                self._blocks,
                self._blocks + 1,
                decision.lam,
                decision.mu,
                decision.certain,
                decision.sums,
                decision.pi,
                decision.lam_t,
                BY_PI=decision.by_pi,
                SIZE=1024,
                num_warps=8,
                enable_fp_fusion=False,
            )

    def _on_device(self) -> contextlib.AbstractContextManager[object]:
        return torch.cuda.device(self._device) if self._device.type == "cuda" else contextlib.nullcontext()

    def _addresses(self) -> tuple[Tensor, bool]:
        """The table that a run takes the addresses from, int64 on the device, and whether all are multiples of 16."""
        if not _capturing(self._device):
            if self._captured:  # a capture that failed
                self._captured.clear()
                self._fill_reserve()
            self.refresh()
            return self._words, self._uploaded_aligned
        now = bytes(self.table)
        if now not in self._captured:
            if not self._reserve:
                raise RuntimeError("a CUDA graph cannot hold several steps of the optimizer; expected one a graph")
            self._captured[now] = self._reserve.pop()
        return self._captured[now], self._aligned()

    def _aligned(self) -> bool:
        return not any(((entry.w or 0) | (entry.m or 0) | (entry.g or 0)) % 16 for entry in self.table)

    def refresh(self) -> None:
        now = bytes(self.table)
        if self._uploaded != now:
            self._words.copy_(_words(now), non_blocking=True)
            self._uploaded, self._uploaded_aligned = now, self._aligned()

    def after_capture(self) -> None:
        self.refresh()
        for words, table in self._captured.items():
            table.copy_(_words(words))
            self._kept.append(table)
        self._captured.clear()
        self._fill_reserve()

    def _fill_reserve(self) -> None:
        """Tables for the next capture: memory that is taken during one is used again within each replay."""
        while len(self._reserve) < _TABLES:
            self._reserve.append(torch.zeros_like(self._words))


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _words(table: bytes) -> Tensor:
    assert len(table) % 8 == 0 and ctypes.sizeof(ctypes.c_int64) == 8
    return torch.frombuffer(bytearray(table), dtype=torch.int64)
