"""What the ranks tell each other for a step: their counts, which make one global π."""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from gcsr.coherence import Counts, coherence_rate

__all__ = ["Vote", "all_agree"]

_NOT_FINITE = -(1 << 52)  # far beyond any count, and 1,024 ranks' sum of it still fits into int64


class Vote:
    """The counts of one step on their way to the global π: the all-reduce runs while the caller goes on.

    Args:
        counts: of this rank's share.
        group: ranks to add up over; None for a single process.
    """

    def __init__(self, counts: Counts, group: dist.ProcessGroup | None) -> None:
        self.grad_sum = counts.grad_sum
        # A gradient that is not finite makes π NaN on every rank: its mark survives the sum of integers.
        coherent = torch.where(counts.grad_sum < math.inf, counts.coherent, _NOT_FINITE)  # nor is NaN less
        self._both = torch.stack((coherent, counts.n))
        self._work = None if group is None else dist.all_reduce(self._both, group=group, async_op=True)

    def pi(self) -> Tensor:
        """The global π, float64 0-dim; NaN if a gradient was not finite. Waits for the all-reduce."""
        if self._work is not None:
            self._work.wait()
        coherent, n = self._both.unbind()
        return torch.where(coherent < 0, torch.nan, coherence_rate(coherent, n))


def all_agree(possible: bool, device: torch.device, group: dist.ProcessGroup | None) -> bool:
    """Whether something is possible on all ranks: in two ways of rounding, replicated weights would drift apart."""
    if group is None:
        return possible
    votes = torch.tensor(possible, dtype=torch.int32, device=device)
    dist.all_reduce(votes, dist.ReduceOp.MIN, group)
    return bool(votes.item())
