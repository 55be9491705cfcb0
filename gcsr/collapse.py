"""When a training can be given up: the network learned nothing, and learning is dying out (the paper's Figure 2)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from gcsr.records import EpochRecord

__all__ = ["WINDOW", "constant_loss", "has_collapsed"]

WINDOW = 8  # epochs
_DECAY = 0.9  # of mean |∇L| over the window; learning shows as its growth, long before the loss moves
_DEAD = 1e-3  # of mean |w| after the first epoch; L1 leaves a flicker around zero there, which shrinks no more


def constant_loss(labels: Tensor) -> float:
    """Cross-entropy of the best answer that ignores the image, in nats: the entropy of the labels (int64 ``[N]``)."""
    shares = torch.bincount(labels).double() / len(labels)
    return float(-(shares[shares > 0] * shares[shares > 0].log()).sum())


def has_collapsed(records: Sequence[EpochRecord], constant_loss: float) -> bool:
    """Whether the last epochs leave no hope.

    Over `WINDOW` epochs in a row λ was imposed, the training loss was no better than a constant answer's, the weights
    shrank from epoch to epoch, and mean |∇L| fell: by the chain rule it shrinks with the weights (§2.2), so what is
    left of the signal only gets weaker. Weights that are next to nothing need not shrink any more, nor |∇L| fall much.
    Nothing is given up while λ is not imposed (the first γ epochs of ``ours``).

    Args:
        records: all epochs so far.
        constant_loss: of the training labels, see `constant_loss`.
    """
    if len(records) <= WINDOW:
        return False
    before, *window = records[-WINDOW - 1 :]
    dead = _DEAD * records[0].weight_abs_mean
    decay = _DECAY if window[-1].weight_abs_mean > dead else 1.0
    return (
        all(record.imposed_fraction > 0 and record.train_loss >= constant_loss for record in window)
        and all(late.weight_abs_mean <= max(early.weight_abs_mean, dead) for early, late in pairwise((before, *window)))
        and window[-1].grad_abs_mean <= decay * before.grad_abs_mean
    )
