"""A plain network written out in C: `plain_network.c`, called through ctypes."""

import ctypes
from collections.abc import Mapping

import torch
from torch import Tensor

from gcsr.compiled import compiled

__all__ = ["NativeNetwork"]


class _Layer(ctypes.Structure):
    """What `plain_network.c` knows of a layer."""

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
        loaded.gcsr_plain_loss.restype = ctypes.c_float
    return loaded


class NativeNetwork:
    """A `gcsr.plain_network.PlainNetwork`; its results do not depend on the number of threads.

    Args:
        weights: parameters by name, float32, contiguous, on the CPU: weight, bias, weight, …

    Attributes:
        grads: see `gcsr.plain_network.PlainNetwork`.
        library: the compiled functions.
        arguments: the layers and how many there are, which each of them takes first.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        loaded = _library()
        assert loaded is not None, "ask available() first"
        self.library = loaded
        self._weights = [weight.detach() for weight in weights.values()]  # they stay alive, and where they are
        self.grads = {name: torch.empty_like(weight) for name, weight in zip(weights, self._weights, strict=True)}
        grads = list(self.grads.values())
        layers = (_Layer * (len(self._weights) // 2))()
        for index, layer in enumerate(layers):
            own = slice(2 * index, 2 * index + 2)
            layer.weight, layer.bias = (tensor.data_ptr() for tensor in self._weights[own])
            layer.weight_grad, layer.bias_grad = (tensor.data_ptr() for tensor in grads[own])
            layer.outputs, layer.inputs = self._weights[2 * index].shape
        self.arguments = layers, ctypes.c_int64(len(layers))
        self._scratch = self._weights[0].new_empty(0)

    @staticmethod
    def available() -> bool:
        """Whether this machine can have it."""
        return _library() is not None

    def answers(self, images: Tensor) -> Tensor:
        images = images.flatten(1).float().contiguous()
        found = images.new_empty(len(images), dtype=torch.int64)
        self.library.gcsr_plain_answers(
            *self.arguments,
            ctypes.c_void_p(images.data_ptr()),
            ctypes.c_int64(len(images)),
            self.scratch(0),
            torch.get_num_threads(),
            ctypes.c_void_p(found.data_ptr()),
        )
        return found

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        images, labels = images.flatten(1).float().contiguous(), labels.long().contiguous()
        mean: float = self.library.gcsr_plain_loss(
            *self.arguments,
            ctypes.c_void_p(images.data_ptr()),
            ctypes.c_void_p(labels.data_ptr()),
            ctypes.c_int64(len(images)),
            self.scratch(len(images)),
            torch.get_num_threads(),
        )
        return torch.tensor(mean)

    def measures(self) -> tuple[int, float]:
        nonzero, weights = ctypes.c_int64(), ctypes.c_double()
        self.library.gcsr_plain_measures(*self.arguments, ctypes.byref(nonzero), ctypes.byref(weights))
        return nonzero.value, weights.value

    def scratch(self, batch: int, *, taken: bool = False) -> ctypes.c_void_p:
        """Memory to compute in, until it is asked for again.

        Args:
            batch: images at most of which gradients are taken; answers need room for none.
            taken: with room for the images themselves and their labels.
        """
        sizing = self.library.gcsr_plain_epoch_scratch if taken else self.library.gcsr_plain_scratch
        size = sizing(*self.arguments, ctypes.c_int64(batch))
        if len(self._scratch) < size:
            self._scratch = self._scratch.new_empty(size)
        return ctypes.c_void_p(self._scratch.data_ptr())
