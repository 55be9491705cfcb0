"""The gated optimizer: coherence (eq. 9), gate (eq. 8, 11) and update (eq. 2, 10) around any torch optimizer."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gcsr.coherence import CoherenceCounter, Counts
from gcsr.errors import ConfigError, NonFiniteGradientError
from gcsr.gate import Gate, Mode, choose_gamma
from gcsr.penalty import REGULARIZERS, Regularizer, soft_threshold_

__all__ = ["GateMetrics", "GatedOptimizer", "regularized_parameters"]

# Affine parameters of these are not regularized: decay on them does not simplify the function.
_NORMALIZATION = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    nn.RMSNorm,
)


def regularized_parameters(model: nn.Module) -> list[nn.Parameter]:
    """R of the method: the trainable parameters except biases and the affine ones of normalization layers."""
    skipped = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, _NORMALIZATION) or name.rpartition(".")[2].startswith("bias")
    }
    return [p for p in model.parameters() if p.requires_grad and id(p) not in skipped]


@dataclass(frozen=True, kw_only=True, slots=True)
class GateMetrics:
    """What the gate measured since the epoch began, averaged over its steps.

    Attributes:
        steps: number of steps.
        pi: mean π, measured with the target λ at every step, imposed or not (the paper's Figure 3).
        imposed_fraction: share of the steps at which λ was imposed.
        lam_effective: mean of ``lam_t``.
        grad_abs_mean: mean |∂L/∂w| over R, before the penalty joins (the paper's Figure 2b).
    """

    steps: int
    pi: float
    imposed_fraction: float
    lam_effective: float
    grad_abs_mean: float


class GatedOptimizer:
    """Imposes strong L1 or L2 regularization only while the gradients stay coherent.

    Wraps any `torch.optim.Optimizer`; learning-rate schedulers stay attached to that inner optimizer::

        optimizer = GatedOptimizer(sgd, regularized_parameters(model), regularizer="l2", mode="ours", lam=1e-2)
        for epoch in range(epochs):
            optimizer.start_epoch(epoch)
            ...  # the usual zero_grad(), backward(), step()

    One `step` measures π with the target λ, asks the gate for ``lam_t`` (0 or λ) and updates: L2 adds
    ``lam_t·2w`` to ``p.grad`` before the inner optimizer sees it (so before its momentum); L1 lets the inner
    optimizer step on ∂L/∂w alone and then shrinks ``w ← S(w, lr·lam_t)`` with the learning rate of the
    parameter's group. Nothing is read back by the host in a step; `metrics` reads once.

    ``step`` must see the gradient as it is averaged over workers, unscaled (`GradScaler.unscale_`) and before
    clipping. Under data parallelism give ``process_group``: every rank counts its slice of R and one all-reduce
    of two integers makes the global π, the same on all ranks.

    Args:
        optimizer: the inner optimizer. Its own ``weight_decay`` must be 0 for the regularized parameters.
        params: the regularized parameters R; each must belong to ``optimizer``.
        regularizer: ``"l2"`` (Ω = ‖w‖², so λ here is half of torch's ``weight_decay``) or ``"l1"``.
        mode: ``none``, ``baseline``, ``ours`` (eq. 11) or ``ours_orig`` (eq. 8).
        lam: λ ≥ 0.
        gamma: γ of ``ours``: the number of free epochs, or ``"auto"``: the first epoch after one whose mean π
            passed ``gamma_threshold``.
        gamma_threshold: in [0, 1].
        mu: μ of ``ours_orig``, in [0, 1].
        process_group: ranks that hold the same gradients and weights; ``None`` for a single process.

    Raises:
        ConfigError: an argument is not allowed.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        params: Iterable[Tensor],
        *,
        regularizer: Regularizer,
        mode: Mode,
        lam: float,
        gamma: int | Literal["auto"] = 5,
        gamma_threshold: float = 0.6,
        mu: float = 0.6,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        params = list(params)
        if regularizer not in REGULARIZERS:
            raise ConfigError("regularizer", regularizer, "one of " + ", ".join(REGULARIZERS))
        if not (math.isfinite(lam) and lam >= 0):
            raise ConfigError("lam", lam, "a finite number ≥ 0")
        if not 0 <= gamma_threshold <= 1:
            raise ConfigError("gamma_threshold", gamma_threshold, "a number from 0 to 1")
        if not params:
            raise ConfigError("params", [], "at least one regularized parameter")
        if any(p.device != params[0].device for p in params):
            raise ConfigError("params", "parameters on several devices", "all on one device")
        self.optimizer = optimizer
        self.regularizer: Regularizer = regularizer
        self.lam = float(lam)
        self.gate = Gate(mode=mode, gamma=None if gamma == "auto" else gamma, mu=mu)
        self._gamma_threshold = gamma_threshold
        self._params = params
        self._groups = _by_group(optimizer, params)
        self._process_group = process_group
        rank, world_size = 0, 1
        if process_group is not None:
            rank, world_size = dist.get_rank(process_group), dist.get_world_size(process_group)
        self._counter = CoherenceCounter(params, self.lam, regularizer, rank=rank, world_size=world_size)
        self._size = sum(p.numel() for p in params)
        self._lam = torch.tensor(self.lam, dtype=torch.float32, device=params[0].device)
        self._zero = torch.zeros_like(self._lam)
        # Sums of the running epoch: steps, π, imposed, |g|; and whether any gradient was not finite.
        self._sums = torch.zeros(4, dtype=torch.float64, device=params[0].device)
        self._one = torch.ones((), dtype=torch.float64, device=params[0].device)
        self.epoch = 0
        self.last_pi = torch.zeros((), dtype=torch.float64, device=params[0].device)
        """π of the last step, 0-dim float64 on the device; NaN where a gradient was not finite."""
        self.last_lam = self._zero
        """``lam_t`` of the last step, 0-dim float32 on the device."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The inner optimizer's parameter groups."""
        return self.optimizer.param_groups

    @property
    def gamma(self) -> int | None:
        """γ in use: as given, or as ``gamma: auto`` chose it; None before it chose and in modes without γ."""
        return self.gate.gamma if self.gate.mode == "ours" else None

    def start_epoch(self, epoch: int) -> None:
        """Tell the gate which epoch (from 0) the next steps belong to, and begin its sums anew.

        With ``gamma: auto`` this is where γ is chosen, which reads the ended epoch's mean π.
        """
        if self.gate.mode == "ours" and self.gate.gamma is None:
            ended = self._sums.tolist()
            previous_pi = ended[1] / ended[0] if ended[0] else None
            self.gate = replace(self.gate, gamma=choose_gamma(epoch, previous_pi, self._gamma_threshold))
        self.epoch = epoch
        self._sums.zero_()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the inner optimizer's."""
        self.optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One update. Afterwards ``p.grad`` of the regularized parameters holds what the inner optimizer saw.

        Raises:
            TypeError: a closure is given: π belongs to one gradient, a closure would make several.
        """
        if closure is not None:
            raise TypeError("GatedOptimizer.step takes no closure: call backward() yourself, then step()")
        grads = [p.grad for p in self._params if p.grad is not None]
        pi, grad_sum = self._measure(grads)
        imposed = self.gate.imposed(self.epoch, pi)
        certain = self.gate.imposed_in(self.epoch)  # known to the host: nothing to multiply with
        may_impose = certain or self.gate.decides_by_pi()
        lam_t = self._lam if certain else torch.where(imposed, self._lam, self._zero) if may_impose else self._zero
        if may_impose and self.regularizer == "l2" and grads:
            weights = [p for p in self._params if p.grad is not None]
            torch._foreach_add_(grads, torch._foreach_mul(weights, 2 * lam_t))
        self.optimizer.step()
        if may_impose and self.regularizer == "l1":
            for group, weights in self._groups:
                soft_threshold_(weights, lam_t * group["lr"])
        self.last_pi, self.last_lam = pi, lam_t
        self._sums += torch.stack((self._one, pi, imposed.double(), grad_sum / self._size))

    def _measure(self, grads: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The step's π (NaN if a gradient is not finite) and Σ|g|, both 0-dim float64."""
        counts = self._counter.count()
        if self._process_group is not None:
            both = torch.stack(tuple(counts))
            dist.all_reduce(both, group=self._process_group)
            counts = Counts(*both.unbind())
        if not grads:
            return counts.rate(), self._zero.double()
        # |g| summed; it is NaN or infinite as soon as one gradient is, so it watches over them at no extra pass.
        norms = torch._foreach_norm(grads, 1, dtype=torch.float32) if _low(grads) else torch._foreach_norm(grads, 1)
        total = torch.stack([norm.double() for norm in norms]).sum()
        return torch.where(total.isfinite(), counts.rate(), torch.nan), total

    def metrics(self) -> GateMetrics:
        """The running epoch's means. Reads the device once (this waits for it).

        Raises:
            NonFiniteGradientError: a gradient of this epoch was NaN or infinite.
        """
        steps, pi, imposed, grad = self._sums.tolist()
        if not math.isfinite(grad):
            raise NonFiniteGradientError(f"a gradient was NaN or infinite in epoch {self.epoch}")
        steps_or_one = max(steps, 1)
        return GateMetrics(
            steps=int(steps),
            pi=pi / steps_or_one,
            imposed_fraction=imposed / steps_or_one,
            lam_effective=self.lam * imposed / steps_or_one,
            grad_abs_mean=grad / steps_or_one,
        )

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state and the gate's; tensors and plain values only (safe for ``weights_only``)."""
        gate = {"epoch": self.epoch, "gamma": self.gate.gamma, "sums": self._sums.clone()}
        return {"optimizer": self.optimizer.state_dict(), "gate": gate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`'s result. λ, mode and regularizer are the constructor's, not the state's."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = state["gate"]["epoch"]
        self.gate = replace(self.gate, gamma=state["gate"]["gamma"])
        self._sums.copy_(state["gate"]["sums"])


def _low(grads: list[Tensor]) -> bool:
    return any(g.dtype in (torch.bfloat16, torch.float16) for g in grads)


def _by_group(optimizer: torch.optim.Optimizer, params: list[Tensor]) -> list[tuple[dict[str, Any], list[Tensor]]]:
    """Regularized parameters by the inner optimizer's group, whose learning rate the proximal step needs."""
    wanted = {id(p) for p in params}
    groups = []
    for index, group in enumerate(optimizer.param_groups):
        members = [p for p in group["params"] if id(p) in wanted]
        if members and group.get("weight_decay"):
            raise ConfigError(
                f"param_groups[{index}].weight_decay", group["weight_decay"], "0: the penalty is the gate's"
            )
        if members:
            groups.append((group, members))
        wanted -= {id(p) for p in members}
    if wanted:
        raise ConfigError("params", f"{len(wanted)} parameters", "parameters of the given optimizer")
    return groups
