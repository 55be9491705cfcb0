"""Answers, loss and gradients of a plain network (``mlpK``) on a CPU, without autograd.

`gcsr.native_network` has them in C; `TorchNetwork` is what that is measured by, and what there is without a compiler.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import nll_loss, one_hot

from gcsr.compiled import native_allowed
from gcsr.config import TrialConfig
from gcsr.names import is_mlp
from gcsr.native_network import NativeNetwork

__all__ = ["PlainNetwork", "TorchNetwork", "is_written_out", "plain_network"]

_ANSWERED = 1000  # images at once: of all their layers' outputs are kept


class PlainNetwork(Protocol):
    """A network that follows weights which are updated in place."""

    grads: dict[str, Tensor]
    """Gradients of the last `loss`, by the parameters' names."""

    def answers(self, images: Tensor) -> Tensor:
        """The class that each image is given.

        Args:
            images: float32 ``[B, C, H, W]``; any number of them.

        Returns:
            int64 ``[B]``.
        """

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of a batch; its gradients are in `grads` afterwards.

        Args:
            images: float32 ``[B, C, H, W]``.
            labels: int64 ``[B]``.

        Returns:
            float32, 0-dim.
        """

    def measures(self) -> tuple[int, float]:
        """How many parameters are not 0, and Σ|w| over the weights without biases."""


def plain_network(config: TrialConfig, weights: Mapping[str, Tensor]) -> PlainNetwork | None:
    """The network of such a trial, written out; None if it cannot be.

    Args:
        config: the trial.
        weights: parameters by name, in the order of the layers: weight, bias, weight, …
    """
    if not is_written_out(config, next(iter(weights.values())).device):
        return None
    if native_allowed() and NativeNetwork.available() and all(w.dtype == torch.float32 for w in weights.values()):
        return NativeNetwork(weights)
    return TorchNetwork(weights)


def is_written_out(config: TrialConfig, device: torch.device) -> bool:
    """Whether the network of such a trial can be written out."""
    return device.type == "cpu" and is_mlp(config.model) and config.precision != "bf16"


class _Layer(NamedTuple):
    """A layer, and where its gradients go."""

    weight: Tensor  # [out, in]
    bias: Tensor  # [out]
    weight_grad: Tensor
    bias_grad: Tensor


class TorchNetwork:
    """With torch's operations.

    Args:
        weights: see `plain_network`.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        weights = {name: weight.detach() for name, weight in weights.items()}
        self.grads = {name: torch.empty_like(weight) for name, weight in weights.items()}
        names = list(weights)
        self._layers = [
            _Layer(weights[weight], weights[bias], self.grads[weight], self.grads[bias])
            for weight, bias in zip(names[::2], names[1::2], strict=True)
        ]

    @torch.no_grad()
    def answers(self, images: Tensor) -> Tensor:
        return torch.cat([self._outputs(part)[-1].argmax(1) for part in images.flatten(1).split(_ANSWERED)])

    @torch.no_grad()
    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        *given, logits = self._outputs(images.flatten(1))
        log_likelihood = torch.log_softmax(logits, 1)
        classes = labels.long()
        delta = (log_likelihood.exp() - one_hot(classes, logits.shape[1])) / len(images)  # ∂loss/∂logits
        for index in range(len(self._layers) - 1, -1, -1):
            layer = self._layers[index]
            torch.mm(delta.t(), given[index], out=layer.weight_grad)
            torch.sum(delta, 0, out=layer.bias_grad)
            if index:
                delta = (delta @ layer.weight) * (given[index] > 0)
        return nll_loss(log_likelihood, classes)

    @torch.no_grad()
    def measures(self) -> tuple[int, float]:
        nonzero = sum(int(torch.count_nonzero(p)) for layer in self._layers for p in (layer.weight, layer.bias))
        return nonzero, sum(layer.weight.abs().sum(dtype=torch.float64).item() for layer in self._layers)

    def _outputs(self, batch: Tensor) -> list[Tensor]:
        """What each layer is given ``[B, in]``, and the logits ``[B, classes]``."""
        outputs = [batch]
        for index, layer in enumerate(self._layers):
            given = outputs[-1].relu_() if index else batch
            outputs.append(torch.addmm(layer.bias, given, layer.weight.t()))
        return outputs
