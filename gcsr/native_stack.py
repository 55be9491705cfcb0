"""Plain networks written out in C: `plain_network.c`, called through ctypes."""

import ctypes
from collections.abc import Mapping

import torch
from torch import Tensor

from gcsr.compiled import compiled

__all__ = ["Layer", "NativeStack"]


class Layer(ctypes.Structure):
    """What `plain_network.c` knows of a trial's layer."""

    _fields_ = (
        ("weight", ctypes.c_void_p),  # [out, in]
        ("bias", ctypes.c_void_p),  # [out]
        ("weight_grad", ctypes.c_void_p),
        ("bias_grad", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
    )


def _library() -> ctypes.CDLL | None:
    loaded = compiled("plain_network.c", "fast")
    if loaded is not None:
        loaded.gcsr_plain_scratch.restype = loaded.gcsr_plain_epoch_scratch.restype = ctypes.c_int64
    return loaded


class NativeStack:
    """A `gcsr.plain_stack.PlainStack`; its results do not depend on the number of threads.

    Args:
        weights: stacked parameters by name, float32 ``[K, …]``, contiguous, on the CPU: weight, bias, weight, …

    Attributes:
        grads: see `gcsr.plain_stack.PlainStack`.
        layers: of the first trial, then of the second, …
        depth: layers of a trial.
        library: the compiled functions.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        loaded = _library()
        assert loaded is not None, "ask available() first"
        self.library = loaded
        self._weights = [weight.detach() for weight in weights.values()]  # they stay alive, and where they are
        self.grads = {name: torch.empty_like(weight) for name, weight in zip(weights, self._weights, strict=True)}
        grads = list(self.grads.values())
        self._trials, self.depth = len(self._weights[0]), len(self._weights) // 2
        self.layers = (Layer * (self._trials * self.depth))()
        for index, layer in enumerate(self.layers):
            k, first = index // self.depth, index % self.depth * 2
            weight, bias = (tensor[k] for tensor in self._weights[first : first + 2])
            weight_grad, bias_grad = (tensor[k] for tensor in grads[first : first + 2])
            layer.weight, layer.bias = weight.data_ptr(), bias.data_ptr()
            layer.weight_grad, layer.bias_grad = weight_grad.data_ptr(), bias_grad.data_ptr()
            layer.outputs, layer.inputs = weight.shape
        self._scratch = self._weights[0].new_empty(0)

    @staticmethod
    def available() -> bool:
        """Whether this machine can have it."""
        return _library() is not None

    def answers(self, images: Tensor) -> Tensor:
        images = images.flatten(1).float().contiguous()
        found = images.new_empty(self._trials, len(images), dtype=torch.int64)
        self._call(self.library.gcsr_plain_answers, (images,), len(images), self.scratch(0), found)
        return found

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        images, labels = images.flatten(2).float().contiguous(), labels.long().contiguous()
        found = images.new_empty(self._trials)
        batch = images.shape[1]
        self._call(self.library.gcsr_plain_losses, (images, labels), batch, self.scratch(batch), found)
        return found

    def scratch(self, batch: int, *, taken: bool = False) -> tuple[Tensor, int]:
        """Memory to compute in, and how many elements of it a trial takes that is computed beside others.

        Args:
            batch: images of a trial at most, of which gradients are taken; answers need room for none.
            taken: with room for the images themselves and their labels.
        """
        sizing = self.library.gcsr_plain_epoch_scratch if taken else self.library.gcsr_plain_scratch
        size = sizing(self.layers, ctypes.c_int64(self.depth), ctypes.c_int64(batch))
        at_once = min(torch.get_num_threads(), self._trials)
        if len(self._scratch) < at_once * size:
            self._scratch = self._scratch.new_empty(at_once * size)
        return self._scratch, size

    def _call(
        self,
        function: "ctypes._FuncPointer",
        given: tuple[Tensor, ...],
        number: int,
        scratch: tuple[Tensor, int],
        found: Tensor,
    ) -> None:
        memory, size = scratch
        function(
            self.layers,
            ctypes.c_int64(self._trials),
            ctypes.c_int64(self.depth),
            *(ctypes.c_void_p(tensor.data_ptr()) for tensor in given),
            ctypes.c_int64(number),
            ctypes.c_void_p(memory.data_ptr()),
            ctypes.c_int64(size),
            torch.get_num_threads(),
            ctypes.c_void_p(found.data_ptr()),
        )
