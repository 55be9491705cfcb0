"""The gradient sign coherence rate π (eq. 9, footnote 2): counting without a float sum or a product.

`count_reference` is the formula, readable. `CoherenceCounter` gives the same integers, fast: float32 in one compiled
pass (`gcsr.memory_pass`), everything else with torch, where small tensors are gathered into one buffer and large
ones cut into pieces, so that every operation but the first reads from cache. Under data parallelism each rank
counts its part (`gcsr.sharding`).

The sum ``g + λ∇Ω`` is rounded twice (product, then sum; never a fused multiply-add), so that a penalty
which cancels a gradient exactly gives exactly 0: not coherent. Otherwise the sign of a floating-point sum is
the sign of the exact sum, gradual underflow included; a *product* ``g·(g + λ∇Ω)`` would underflow to 0 in
the collapsing networks that the method exists for.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gcsr.errors import ConfigError
from gcsr.names import Regularizer
from gcsr.parameter_pass import ParameterPass, ParameterShapes, can_pass
from gcsr.penalty import penalty_gradient
from gcsr.sharding import counted_slices, local

__all__ = ["CoherenceCounter", "Counts", "coherence_rate", "count_reference"]

_CPU_PIECE = 1 << 17  # elements: three float32 buffers of this size stay in a core's 2 MiB second-level cache
_SMALL = 1 << 15  # tensors below this share one gathered piece: their cost is calls, not bytes


class Counts(NamedTuple):
    """What eq. 9 needs, as 0-dim tensors on the gradients' device."""

    coherent: Tensor
    """int64: how many non-zero gradients keep their sign under ``g + λ∇Ω``."""
    n: Tensor
    """int64: how many gradients are not 0 (footnote 2)."""
    grad_sum: Tensor
    """float64: Σ|g| over what was counted; not finite as soon as one gradient is not, so it watches over them."""

    def rate(self) -> Tensor:
        """π of these counts, see `coherence_rate`."""
        return coherence_rate(self.coherent, self.n)


def coherence_rate(coherent: Tensor, n: Tensor) -> Tensor:
    """π = coherent / n (eq. 9), float64; 0 where ``n = 0``: no learning, so nothing to be coherent with."""
    return coherent.double() / n.clamp(min=1).double()


def count_reference(grads: Sequence[Tensor], weights: Sequence[Tensor], lam: float, regularizer: Regularizer) -> Counts:
    """Eq. 9 as it is written, one tensor after the other. Slow; what the fast path is tested against.

    Args:
        grads: ∂L/∂w, any shapes; dtypes below float32 are widened to it.
        weights: w, of the same shapes.
        lam: λ ≥ 0.
        regularizer: ``"l1"`` or ``"l2"``.
    """
    device = grads[0].device if grads else torch.device("cpu")
    coherent = torch.zeros((), dtype=torch.int64, device=device)
    n = torch.zeros((), dtype=torch.int64, device=device)
    grad_sum = torch.zeros((), dtype=torch.float64, device=device)
    for g, w in zip(grads, weights, strict=True):
        wide = torch.promote_types(torch.float32, torch.promote_types(g.dtype, w.dtype))
        g, w = g.to(wide), w.to(wide)
        penalty = penalty_gradient(w, regularizer, lam)
        learning = g != 0
        coherent += (learning & (torch.sign(g) == torch.sign(g + penalty))).sum()
        n += learning.sum()
        grad_sum += g.double().abs().sum()
    return Counts(coherent, n, grad_sum)


class CoherenceCounter:
    """Counts coherent gradients over a fixed list of parameters, on their device, without host synchronization.

    Args:
        params: the regularized parameters, all on one device; plain, or sharded by FSDP2.
        lam: target λ ≥ 0.
        regularizer: ``"l1"`` or ``"l2"``.
        rank, world_size: this process counts its share of plain parameters (adding up is the caller's).

    A parameter without a gradient (``p.grad is None``) does not learn and is not counted.
    """

    def __init__(
        self, params: Sequence[Tensor], lam: float, regularizer: Regularizer, *, rank: int = 0, world_size: int = 1
    ) -> None:
        self.params = list(params)
        self.lam = lam
        self.regularizer = regularizer
        self._scale = 2 * lam if regularizer == "l2" else lam
        self._device = self.params[0].device
        self._shapes = ParameterShapes(self.params)
        slices = counted_slices(self.params, rank, world_size)
        self._pass: ParameterPass | None = None
        if can_pass(self.params):
            counted = {index: (start, stop) for index, start, stop in slices}
            self._pass = ParameterPass(self.params, counted, lam, regularizer)
        piece = _CPU_PIECE if self._device.type == "cpu" else 1 << 62
        self._gathered: list[list[tuple[int, int, int]]] = []  # groups of small slices, each of one precision
        self._pieces: list[tuple[int, int, int]] = []
        open_groups: dict[torch.dtype, list[tuple[int, int, int]]] = {}
        room: dict[torch.dtype, int] = {}
        for index, start, stop in slices:
            if stop - start < _SMALL:
                wide = torch.promote_types(torch.float32, self.params[index].dtype)
                if room.get(wide, 0) < stop - start:
                    open_groups[wide] = []
                    self._gathered.append(open_groups[wide])
                    room[wide] = _CPU_PIECE
                open_groups[wide].append((index, start, stop))
                room[wide] -= stop - start
            else:
                self._pieces += [(index, low, min(low + piece, stop)) for low in range(start, stop, piece)]

    def count(self) -> Counts:
        """Counts over the parameters' current ``.grad`` and values (see `Counts`).

        Raises:
            ConfigError: a parameter was resized or moved, or a gradient is sparse.
        """
        if self._pass is not None and self._pass.point():
            self._pass.memory.run(count=True)
            return Counts(*self._pass.counts())
        return self._count_with_torch()

    def after_capture(self) -> None:
        """See `gcsr.optim.GatedOptimizer.after_capture`."""
        if self._pass is not None:
            self._pass.memory.after_capture()

    def _count_with_torch(self) -> Counts:
        self._shapes.check()
        weights = [local(p.detach()) for p in self.params]
        grads = [None if p.grad is None else local(p.grad) for p in self.params]
        for g in grads:
            if g is not None and g.layout != torch.strided:
                raise ConfigError("params", f"a gradient of layout {g.layout}", "dense gradients")
        # In the weights' order on every rank, however a rank's gradient lies: that is how R is cut.
        flat_w = [_flat(w, w) for w in weights]
        flat_g = [None if g is None else _flat(g, w) for g, w in zip(grads, weights, strict=True)]
        counts: list[Tensor] = []
        sums: list[Tensor] = []

        def add(g: Tensor, w: Tensor) -> None:
            wide = torch.promote_types(torch.float32, torch.promote_types(g.dtype, w.dtype))
            g, w = g.to(wide), w.to(wide)
            penalized = (w if self.regularizer == "l2" else w.sign()).mul(self._scale).add_(g)
            # sign(g) is ±1 or 0, so this product is exact: positive where the sign is kept, 0 where either is 0.
            kept = penalized.mul_(g.sign())
            counts.extend((torch.count_nonzero(kept > 0), torch.count_nonzero(g)))
            sums.append(torch.linalg.vector_norm(g, 1).double())

        for group in self._gathered:
            g_parts, w_parts = [], []
            for index, start, stop in group:
                g = flat_g[index]
                if g is not None:
                    g_parts.append(g[start:stop])
                    w_parts.append(flat_w[index][start:stop])
            if len(g_parts) > 1:  # torch.cat promotes mixed dtypes
                add(torch.cat(g_parts), torch.cat(w_parts))
            elif g_parts:
                add(g_parts[0], w_parts[0])
        for index, start, stop in self._pieces:
            g = flat_g[index]
            if g is not None:
                add(g[start:stop], flat_w[index][start:stop])
        if not sums:
            zero = torch.zeros((), dtype=torch.int64, device=self._device)
            return Counts(zero, zero.clone(), zero.double())
        coherent, n = torch.stack(counts).view(-1, 2).sum(0).unbind()
        return Counts(coherent, n, torch.stack(sums).sum())


def _flat(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor` as one dimension, in the memory order of `like` so that dense layouts (channels-last) are views."""
    if tensor.dim() < 2 or (tensor.is_contiguous() and like.is_contiguous()):
        return tensor.reshape(-1)
    strides = like.stride()
    order = sorted(range(like.dim()), key=lambda d: (-strides[d], d))
    return tensor.permute(order).reshape(-1)
