"""Answers, losses and gradients of stacked plain networks (``mlpK``) on a CPU, without autograd.

Trial by trial, so that its matrices stay in the core's cache, and so that it gets the bits that it has
alone. `gcsr.native_stack` does it in C; `TorchStack` is what that is measured by, and what there is without a compiler.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import nll_loss, one_hot

from gcsr.compiled import native_allowed
from gcsr.config import TrialConfig
from gcsr.names import is_mlp
from gcsr.native_stack import NativeStack

__all__ = ["PlainStack", "TorchStack", "is_written_out", "plain_stack"]


class PlainStack(Protocol):
    """The networks of a cohort, or one alone; follows weights that are updated in place."""

    grads: dict[str, Tensor]
    """Gradients of the last `losses`, stacked like the parameters."""

    def answers(self, images: Tensor) -> Tensor:
        """The class that each trial's network gives each image.

        Args:
            images: float32 ``[B, C, H, W]``, the same for all; any number of them.

        Returns:
            int64 ``[K, B]``.
        """

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of each trial's batch; its gradients are in `grads` afterwards.

        Args:
            images: float32 ``[K, B, C, H, W]``.
            labels: int64 ``[K, B]``.

        Returns:
            float32 ``[K]``.
        """


def plain_stack(config: TrialConfig, weights: Mapping[str, Tensor]) -> PlainStack | None:
    """The networks of such trials, written out; None if they cannot be.

    Args:
        config: of one of them.
        weights: stacked parameters by name, ``[K, …]``, in the order of the layers: weight, bias, weight, …
    """
    if not is_written_out(config, next(iter(weights.values())).device):
        return None
    if native_allowed() and NativeStack.available() and all(w.dtype == torch.float32 for w in weights.values()):
        return NativeStack(weights)
    return TorchStack(weights)


def is_written_out(config: TrialConfig, device: torch.device) -> bool:
    """Whether the networks of such trials can be written out."""
    return device.type == "cpu" and is_mlp(config.model) and config.precision != "bf16"


class _Layer(NamedTuple):
    """One trial's layer, and where its gradients go."""

    weight: Tensor  # [out, in]
    bias: Tensor  # [out]
    weight_grad: Tensor
    bias_grad: Tensor


class TorchStack:
    """With torch's operations.

    Args:
        weights: see `plain_stack`.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        weights = {name: weight.detach() for name, weight in weights.items()}
        self.grads = {name: torch.empty_like(weight) for name, weight in weights.items()}
        names = list(weights)
        self._trials = [
            [
                _Layer(weights[weight][k], weights[bias][k], self.grads[weight][k], self.grads[bias][k])
                for weight, bias in zip(names[::2], names[1::2], strict=True)
            ]
            for k in range(len(weights[names[0]]))
        ]

    @torch.no_grad()
    def answers(self, images: Tensor) -> Tensor:
        return torch.stack([_outputs(layers, images.flatten(1))[-1].argmax(1) for layers in self._trials])

    @torch.no_grad()
    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        trials = zip(self._trials, images.flatten(2), labels.long(), strict=True)
        return torch.stack([_loss(layers, batch, classes) for layers, batch, classes in trials])


def _outputs(layers: list[_Layer], batch: Tensor) -> list[Tensor]:
    """What each layer is given ``[B, in]``, and the logits ``[B, classes]``."""
    outputs = [batch]
    for index, layer in enumerate(layers):
        given = outputs[-1].relu_() if index else batch
        outputs.append(torch.addmm(layer.bias, given, layer.weight.t()))
    return outputs


def _loss(layers: list[_Layer], batch: Tensor, classes: Tensor) -> Tensor:
    *given, logits = _outputs(layers, batch)
    log_likelihood = torch.log_softmax(logits, 1)
    delta = (log_likelihood.exp() - one_hot(classes, logits.shape[1])) / len(batch)  # ∂loss/∂logits
    for index in range(len(layers) - 1, -1, -1):
        layer = layers[index]
        torch.mm(delta.t(), given[index], out=layer.weight_grad)
        torch.sum(delta, 0, out=layer.bias_grad)
        if index:
            delta = (delta @ layer.weight) * (given[index] > 0)
    return nll_loss(log_likelihood, classes)
