"""The penalties Ω: their gradient (eq. 2) and, for L1, the proximal step (eq. 10)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gcsr.names import Regularizer

__all__ = ["penalty_gradient", "soft_threshold_"]


def penalty_gradient(w: Tensor, regularizer: Regularizer, lam: float = 1.0) -> Tensor:
    """λ∇Ω of eq. 2; ∇Ω is ``2·w`` for L2 (Ω = ‖w‖²), ``sign(w)`` with ``sign(0) = 0`` for L1 (Ω = ‖w‖₁).

    Args:
        w: weights of any shape and floating dtype.
        regularizer: ``"l1"`` or ``"l2"``.
        lam: λ.

    Returns:
        A new tensor of ``w``'s shape and dtype.
    """
    return 2 * lam * w if regularizer == "l2" else lam * w.sign()  # 2w alone might overflow


def soft_threshold_(weights: Sequence[Tensor], threshold: Tensor) -> None:
    """The proximal step of L1 (eq. 10), in place: ``w ← S(w, z)``, with exact zeros where ``|w| ≤ z``.

    ``w − clamp(w, −z, z)`` is S in two passes: inside the threshold it subtracts ``w`` from itself
    (exactly 0), outside it subtracts ``±z``. NaN stays NaN, ``z = 0`` changes nothing.

    Args:
        weights: tensors of any shape, changed in place.
        threshold: 0-dim tensor ``z = lr·lam_t ≥ 0`` on their device; never read by the host.
    """
    for w in weights:
        z = threshold.to(w.dtype)
        w.sub_(torch.clamp(w, -z, z))
