"""The passes on NVIDIA GPUs: one Triton kernel over all tensors, launched without waiting for anything."""

import contextlib
import ctypes
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from gcsr.memory_pass import MemoryPass, PassTensor
from gcsr.triton_kernel import BLOCK, WARPS, pass_kernel

__all__ = ["TritonPass"]


class TritonPass(MemoryPass):
    """Passes over float32 tensors in a GPU's memory.

    The table is copied to the device when it changes, which is when a gradient lies elsewhere or a learning rate is
    new. A pass that is captured into a CUDA graph gets a table of its own, filled by `after_capture`.

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
        self._uploaded: tuple[bytes, Tensor, bool] | None = None  # the table, on the device, and whether it is aligned
        self._captured: list[tuple[Tensor, bytes]] = []

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
        table, aligned = self._table()
        with torch.cuda.device(self._device) if self._device.type == "cuda" else contextlib.nullcontext():
            pass_kernel[(self._blocks,)](
                table,
                table.view(torch.float32),
                table.view(torch.int32),
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

    def _table(self) -> tuple[Tensor, bool]:
        """The table as it is now, int64 on the device, and whether all addresses in it are multiples of 16."""
        now = bytes(self.table)
        if _capturing(self._device):  # a copy from the host would be replayed with what then stands there
            held = torch.empty(len(now) // 8, dtype=torch.int64, device=self._device)
            self._captured.append((held, now))
            return held, self._aligned()
        if self._uploaded is None or self._uploaded[0] != now:
            self._uploaded = now, _words(now).to(self._device, non_blocking=True), self._aligned()
        return self._uploaded[1:]

    def _aligned(self) -> bool:
        return not any(((entry.w or 0) | (entry.m or 0) | (entry.g or 0)) % 16 for entry in self.table)

    def after_capture(self) -> None:
        for held, words in self._captured:
            held.copy_(_words(words))
        self._captured.clear()


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _words(table: bytes) -> Tensor:
    assert len(table) % 8 == 0 and ctypes.sizeof(ctypes.c_int64) == 8
    return torch.frombuffer(bytearray(table), dtype=torch.int64)
