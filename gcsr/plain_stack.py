"""Answers, losses and gradients of stacked plain networks (``mlpK``) on a CPU, written out.

What autograd gives through vmap, to rounding, but one trial after the other, so that its matrices stay in the core's
cache, and in memory that is there already: every product is written where the next one reads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gcsr.config import TrialConfig
from gcsr.names import is_mlp

__all__ = ["PlainStack"]


class _Layer:
    """One trial's layer, and where its gradients go.

    Products are as small as what it costs to take a view: every view that one needs is here.
    """

    __slots__ = ("bias", "bias_grad", "transposed", "weight", "weight_grad")

    def __init__(self, weight: Tensor, bias: Tensor, weight_grad: Tensor, bias_grad: Tensor) -> None:
        self.weight, self.transposed, self.bias = weight, weight.t(), bias  # [out, in], [in, out], [out]
        self.weight_grad, self.bias_grad = weight_grad, bias_grad


@dataclass(frozen=True, slots=True)
class _Scratch:
    """Where the products of a batch of ``B`` images are written, layer by layer.

    Attributes:
        outputs: ``[B, out]``.
        deltas: ∂loss/∂output ``[B, out]``, of all layers but the last.
        transposed: of them ``[out, B]``.
        minus_one: ``[B, 1]``.
    """

    outputs: list[Tensor]
    deltas: list[Tensor]
    transposed: list[Tensor]
    minus_one: Tensor


class PlainStack:
    """The networks of a cohort, or one alone.

    Args:
        weights: stacked parameters by name, ``[K, …]``, in the order of the layers: weight, bias, weight, …
        batch_size: images of a trial at most.
    """

    def __init__(self, weights: Mapping[str, Tensor], batch_size: int) -> None:
        weights = {name: weight.detach() for name, weight in weights.items()}
        self.grads = {name: torch.empty_like(weight) for name, weight in weights.items()}
        """Gradients of the last `losses`, stacked like the parameters."""
        names = list(weights)
        stacked = [
            (weights[weight], weights[bias], self.grads[weight], self.grads[bias])
            for weight, bias in zip(names[::2], names[1::2], strict=True)
        ]
        first = weights[names[0]]
        self._trials = [[_Layer(*(tensor[k] for tensor in layer)) for layer in stacked] for k in range(len(first))]
        sizes = [len(layer.bias) for layer in self._trials[0]]
        self._outputs = [first.new_empty(batch_size, size) for size in sizes]
        self._deltas = [first.new_empty(batch_size, size) for size in sizes[:-1]]
        self._minus_one = first.new_full((batch_size, 1), -1.0)
        self._scratch: dict[int, _Scratch] = {}  # by size: whole batches, and ragged last ones

    @classmethod
    def of(cls, config: TrialConfig, weights: Mapping[str, Tensor], images: int) -> "PlainStack | None":
        """The stack of such trials, which are trained on so many images; None if it cannot be written out."""
        suits = cls.suits(config, next(iter(weights.values())).device)
        return cls(weights, min(config.batch_size, images)) if suits else None

    @staticmethod
    def suits(config: TrialConfig, device: torch.device) -> bool:
        """Whether the networks of such trials can be written out."""
        return device.type == "cpu" and is_mlp(config.model) and config.precision != "bf16"

    @torch.no_grad()
    def answers(self, images: Tensor) -> Tensor:
        """The class that each trial's network gives each image.

        Args:
            images: float32 ``[B, C, H, W]``, the same for all; any number of them.

        Returns:
            int64 ``[K, B]``.
        """
        return torch.stack([self._answers(layers, images.flatten(1)) for layers in self._trials])

    def _answers(self, layers: list[_Layer], batch: Tensor) -> Tensor:
        for layer in layers[:-1]:
            batch = torch.addmm(layer.bias, batch, layer.transposed).relu_()
        return torch.addmm(layers[-1].bias, batch, layers[-1].transposed).argmax(1)

    @torch.no_grad()
    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of each trial's batch; its gradients are in `grads` afterwards.

        Args:
            images: float32 ``[K, B, C, H, W]``.
            labels: int64 ``[K, B]``.

        Returns:
            float32 ``[K]``.
        """
        scratch = self._scratch_for(images.shape[1])
        trials = zip(self._trials, images.flatten(2), labels.unsqueeze(2), strict=True)
        return torch.stack([self._loss(layers, batch, classes, scratch) for layers, batch, classes in trials])

    def _scratch_for(self, size: int) -> _Scratch:
        scratch = self._scratch.get(size)
        if scratch is None:
            deltas = [delta[:size] for delta in self._deltas]
            scratch = self._scratch[size] = _Scratch(
                outputs=[output[:size] for output in self._outputs],
                deltas=deltas,
                transposed=[delta.t() for delta in deltas],
                minus_one=self._minus_one[:size],
            )
        return scratch

    def _loss(self, layers: list[_Layer], batch: Tensor, classes: Tensor, scratch: _Scratch) -> Tensor:
        last = len(layers) - 1
        inputs = [batch, *scratch.outputs[:last]]
        for layer, given, output in zip(layers, inputs, scratch.outputs, strict=True):
            torch.addmm(layer.bias, given, layer.transposed, out=output)
            if layer is not layers[last]:
                output.relu_()
        delta = torch.log_softmax(scratch.outputs[last], 1)
        loss = -delta.gather(1, classes).mean()
        delta.exp_().scatter_add_(1, classes, scratch.minus_one).div_(len(batch))  # ∂loss/∂logits
        transposed = delta.t()
        for index in range(last, -1, -1):
            layer, given = layers[index], inputs[index]
            torch.mm(transposed, given, out=layer.weight_grad)
            torch.sum(delta, 0, out=layer.bias_grad)
            if index:
                before, transposed = scratch.deltas[index - 1], scratch.transposed[index - 1]
                torch.mm(delta, layer.weight, out=before)
                delta = torch.ops.aten.threshold_backward.grad_input(before, given, 0, grad_input=before)
        return loss
