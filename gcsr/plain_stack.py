"""Losses and gradients of stacked plain networks (``mlpK``) on a CPU, written out.

What autograd gives through vmap, to rounding, but one trial after the other, so that its matrices stay in the core's
cache, and in memory that is there already: every product is written where the next one reads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gcsr.config import TrialConfig
from gcsr.models import is_mlp

__all__ = ["PlainStack"]


@dataclass(frozen=True, slots=True)
class _Layer:
    """One trial's layer: ``weight`` ``[out, in]`` and ``bias`` ``[out]``, and where their gradients go."""

    weight: Tensor
    bias: Tensor
    weight_grad: Tensor
    bias_grad: Tensor


class PlainStack:
    """The networks of a cohort.

    Args:
        weights: stacked parameters by name, ``[K, …]``, in the order of the layers: weight, bias, weight, …
        batch_size: images of a trial at most.
    """

    def __init__(self, weights: Mapping[str, Tensor], batch_size: int) -> None:
        self.grads = {name: torch.empty_like(weight.detach()) for name, weight in weights.items()}
        """Gradients of the last `losses`, stacked like the parameters."""
        names = list(weights)
        first = weights[names[0]]
        self._trials = [
            [
                _Layer(
                    weights[weight].detach()[k], weights[bias].detach()[k], self.grads[weight][k], self.grads[bias][k]
                )
                for weight, bias in zip(names[::2], names[1::2], strict=True)
            ]
            for k in range(len(first))
        ]
        sizes = [len(layer.bias) for layer in self._trials[0]]
        self._outputs = [first.new_empty(batch_size, size) for size in sizes]
        self._deltas = [first.new_empty(batch_size, size) for size in sizes]
        self._minus_one = first.new_full((batch_size, 1), -1.0)

    @staticmethod
    def suits(config: TrialConfig, device: torch.device) -> bool:
        """Whether the networks of such trials can be written out."""
        return device.type == "cpu" and is_mlp(config.model) and config.precision != "bf16"

    @torch.no_grad()
    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of each trial's batch; its gradients are in `grads` afterwards.

        Args:
            images: float32 ``[K, B, C, H, W]``.
            labels: int64 ``[K, B]``.

        Returns:
            float32 ``[K]``.
        """
        trials = zip(self._trials, images.flatten(2), labels.unsqueeze(2), strict=True)
        return torch.stack([self._loss(layers, batch, classes) for layers, batch, classes in trials])

    def _loss(self, layers: list[_Layer], batch: Tensor, classes: Tensor) -> Tensor:
        size, last = len(batch), len(layers) - 1
        inputs = [batch]
        for index, layer in enumerate(layers):
            output = self._outputs[index][:size]
            torch.addmm(layer.bias, inputs[-1], layer.weight.t(), out=output)
            inputs.append(output if index == last else output.relu_())
        delta = torch.log_softmax(inputs.pop(), 1)
        loss = -delta.gather(1, classes).mean()
        delta.exp_().scatter_add_(1, classes, self._minus_one[:size]).div_(size)  # ∂loss/∂logits
        for index in range(last, -1, -1):
            layer, given = layers[index], inputs.pop()
            torch.mm(delta.t(), given, out=layer.weight_grad)
            torch.sum(delta, 0, out=layer.bias_grad)
            if index:
                before = torch.mm(delta, layer.weight, out=self._deltas[index - 1][:size])
                delta = torch.ops.aten.threshold_backward.grad_input(before, given, 0, grad_input=before)
        return loss
