"""The gated step of a cohort: coherence (eq. 9) and update (eq. 2, 10) of K trials whose weights are stacked."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from gcsr.coherence import coherence_rate
from gcsr.config import TrialConfig
from gcsr.memory_pass import PassTensor
from gcsr.parameter_pass import can_pass, memory_pass

__all__ = ["PassStep", "Stepper", "TorchStep", "stepper"]


class Stepper(Protocol):
    """The gated step, for stacked weights ``[K, …]``."""

    def set_lrs(self, lrs: Sequence[float]) -> None:
        """Set the learning rates of the next steps, captured ones included; one a trial."""

    def coherence(self, grads: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Eq. 9 for each trial: π (NaN where a gradient is not finite) and Σ|g|, both float64 ``[K]``."""

    def update(self, grads: Mapping[str, Tensor], lam_t: Tensor) -> None:
        """SGD with the penalty of L2 in front of the momentum and eq. 10 of L1 behind it.

        Args:
            grads: as given to `coherence` just before.
            lam_t: float32 ``[K]``.
        """

    def momentum(self) -> dict[str, Tensor]:
        """The momentum of every weight ``[K, …]``; zeros or nothing before the first step."""

    def after_capture(self) -> None:
        """To be called once a CUDA graph that holds a step is captured, before its first replay."""


def stepper(
    weights: Mapping[str, Tensor],
    regularized: Sequence[str],
    configs: Sequence[TrialConfig],
    momentum: Mapping[str, Tensor],
) -> Stepper:
    """The fastest step for these weights.

    Args:
        weights: name → the weights of all trials ``[K, …]``; updated in place.
        regularized: names of the regularized ones.
        configs: the trials.
        momentum: to go on with, as `Stepper.momentum` gave it; empty to begin.
    """
    if can_pass([weight.detach() for weight in weights.values()]):
        return PassStep(weights, regularized, configs, momentum)
    return TorchStep(weights, regularized, configs, momentum)


class TorchStep:
    """With torch's operations, on any device."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        regularized: Sequence[str],
        configs: Sequence[TrialConfig],
        momentum: Mapping[str, Tensor],
    ) -> None:
        self._weights, self._regularized = weights, regularized
        self._device = next(iter(weights.values())).device
        self._lam = self._vector([config.lam for config in configs])
        self._momentum = self._vector([config.momentum for config in configs])
        self._l2 = torch.tensor([config.penalty == "l2" for config in configs], device=self._device)
        self._lr = self._vector([config.lr for config in configs])
        self._buffers = dict(momentum)

    def momentum(self) -> dict[str, Tensor]:
        return self._buffers

    def after_capture(self) -> None:
        pass

    def _vector(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)

    def set_lrs(self, lrs: Sequence[float]) -> None:
        self._lr.copy_(self._vector(lrs))

    def coherence(self, grads: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        coherent = torch.zeros(len(self._lam), dtype=torch.int64, device=self._device)
        n, grad_sum = torch.zeros_like(coherent), coherent.double()
        l2 = self._l2.view(-1, 1)
        scale = torch.where(self._l2, 2 * self._lam, self._lam).view(-1, 1)
        for name in self._regularized:
            g, w = grads[name].flatten(1), self._weights[name].flatten(1)
            kept = (torch.where(l2, w, w.sign()) * scale).add_(g).mul_(g.sign())
            coherent += (kept > 0).sum(1)
            n += (g != 0).sum(1)
            grad_sum += g.abs().sum(1, dtype=torch.float64)
        return _rate(coherent, n, grad_sum), grad_sum

    def update(self, grads: Mapping[str, Tensor], lam_t: Tensor) -> None:
        for name, w in self._weights.items():
            shape = (-1,) + (1,) * (w.dim() - 1)
            g, imposed = grads[name], name in self._regularized
            if imposed:
                g = g + (2 * torch.where(self._l2, lam_t, 0)).view(shape) * w
            buffer = self._buffers.get(name)
            if buffer is None:
                self._buffers[name] = buffer = g.clone()
            else:
                buffer.mul_(self._momentum.view(shape)).add_(g)
            w.sub_(self._lr.view(shape) * buffer)
            if imposed:
                z = (self._lr * torch.where(self._l2, 0, lam_t)).view(shape)
                w.sub_(torch.clamp(w, -z, z))


class PassStep:
    """With the compiled passes (float32). A trial is a group of the pass, and its tensors follow each other."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        regularized: Sequence[str],
        configs: Sequence[TrialConfig],
        momentum: Mapping[str, Tensor],
    ) -> None:
        self._weights, self._configs = weights, configs
        self._regularized = set(regularized)
        # Of zeros, torch.optim.SGD's first step is a step like any other.
        self._buffers = dict(momentum) or {name: torch.zeros_like(weight) for name, weight in weights.items()}
        self._held: list[Tensor] = []
        tensors = []
        for k, config, name in self._places():
            size = weights[name][0].numel()
            counted = size if name in self._regularized else 0
            tensors.append(PassTensor(elements=size, high=counted, lam=config.lam, regularizer=config.penalty, group=k))
        self.memory = memory_pass(next(iter(weights.values())).device, tensors, groups=len(configs))
        for entry, (k, config, name) in zip(self.memory.table, self._places(), strict=True):
            entry.w, entry.m = weights[name][k].data_ptr(), self._buffers[name][k].data_ptr()
            entry.momentum = config.momentum

    def _places(self) -> Iterator[tuple[int, TrialConfig, str]]:
        """Of the table's entries: the trial, and the name of the tensor."""
        return ((k, config, name) for k, config in enumerate(self._configs) for name in self._weights)

    def momentum(self) -> dict[str, Tensor]:
        return self._buffers

    def after_capture(self) -> None:
        self.memory.after_capture()

    def set_lrs(self, lrs: Sequence[float]) -> None:
        for entry, (k, config, name) in zip(self.memory.table, self._places(), strict=True):
            entry.lr = lrs[k]
            if name in self._regularized:
                entry.l2, entry.l1 = (0.0, lrs[k]) if config.penalty == "l1" else (2.0, 0.0)
        self.memory.refresh()

    def _point(self, grads: Mapping[str, Tensor]) -> None:
        """Take the gradients from there, until told otherwise; they must be contiguous."""
        self._held = [grads[name] for name in self._weights]
        places = {name: (grad.data_ptr(), 4 * grad[0].numel()) for name, grad in grads.items()}
        for entry, (k, _, name) in zip(self.memory.table, self._places(), strict=True):
            base, step = places[name]
            entry.g = base + k * step

    def coherence(self, grads: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        self._point({name: grad.contiguous() for name, grad in grads.items()})
        self.memory.run(count=True)
        coherent, n, grad_sum = self.memory.totals()
        return _rate(coherent, n, grad_sum), grad_sum

    def update(self, grads: Mapping[str, Tensor], lam_t: Tensor) -> None:
        self.memory.run(count=False, lam_t=lam_t)


def _rate(coherent: Tensor, n: Tensor, grad_sum: Tensor) -> Tensor:
    return torch.where(grad_sum < math.inf, coherence_rate(coherent, n), torch.nan)
