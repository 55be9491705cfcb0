"""What is measured of a network beside its accuracy: sparsity, mean |w|; and what counts as chance."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["is_chance", "sparsity", "weight_abs_mean"]


@torch.no_grad()
def sparsity(model: nn.Module) -> Tensor:
    """Exact zeros / all parameters, biases included, nothing thresholded (§3): float64, 0-dim."""
    parameters = list(model.parameters())
    nonzero = torch.stack([torch.count_nonzero(p) for p in parameters]).sum()
    total = sum(p.numel() for p in parameters)
    return 1 - nonzero.double() / total


@torch.no_grad()
def weight_abs_mean(params: Iterable[Tensor]) -> Tensor:
    """Mean |w| over the regularized parameters (the paper's Figures 2d and 8b): float64, 0-dim."""
    params = list(params)
    sums = torch.stack([p.abs().sum(dtype=torch.float64) for p in params])
    return sums.sum() / sum(p.numel() for p in params)


def is_chance(accuracy: float, labels: Tensor) -> bool:
    """Whether an accuracy is no better than guessing.

    Chance is the best constant answer (the share of the commonest class in ``labels``); three binomial standard
    deviations above it still count as chance.
    """
    chance = torch.bincount(labels).max().item() / len(labels)
    return accuracy <= chance + 3 * math.sqrt(chance * (1 - chance) / len(labels))
