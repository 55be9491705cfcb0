"""Plain networks written out in C: `plain_network.c`, called through ctypes."""

import ctypes
from collections.abc import Mapping

import torch
from torch import Tensor

from gcsr.compiled import compiled

__all__ = ["NativeStack"]


class _Layer(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),  # [out, in]
        ("bias", ctypes.c_void_p),  # [out]
        ("weight_grad", ctypes.c_void_p),
        ("bias_grad", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
    )


def _library() -> ctypes.CDLL | None:
    return compiled("plain_network.c", "fast")


class NativeStack:
    """A `gcsr.plain_stack.PlainStack`; its results do not depend on the number of threads.

    Args:
        weights: stacked parameters by name, float32 ``[K, …]``, contiguous, on the CPU: weight, bias, weight, …
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        loaded = _library()
        assert loaded is not None, "ask available() first"
        self._losses, self._answers, self._sizing = (
            loaded.gcsr_plain_losses,
            loaded.gcsr_plain_answers,
            loaded.gcsr_plain_scratch,
        )
        self._losses.restype = self._answers.restype = None
        self._sizing.restype = ctypes.c_int64
        self._weights = [weight.detach() for weight in weights.values()]  # they stay alive, and where they are
        self.grads = {name: torch.empty_like(weight) for name, weight in zip(weights, self._weights, strict=True)}
        self._trials, self._depth = len(self._weights[0]), len(self._weights) // 2
        grads = list(self.grads.values())
        self._layers = (_Layer * (self._trials * self._depth))()
        for k in range(self._trials):
            for layer in range(self._depth):
                weight, bias, weight_grad, bias_grad = (
                    tensor[k] for tensors in (self._weights, grads) for tensor in tensors[2 * layer : 2 * layer + 2]
                )
                entry = self._layers[k * self._depth + layer]
                entry.weight, entry.bias = weight.data_ptr(), bias.data_ptr()
                entry.weight_grad, entry.bias_grad = weight_grad.data_ptr(), bias_grad.data_ptr()
                entry.outputs, entry.inputs = weight.shape
        self._scratch = self._weights[0].new_empty(0)

    @staticmethod
    def available() -> bool:
        """Whether this machine can have it."""
        return _library() is not None

    def answers(self, images: Tensor) -> Tensor:
        images = images.flatten(1).contiguous()
        found = images.new_empty(self._trials, len(images), dtype=torch.int64)
        self._call(self._answers, (images,), len(images), found)
        return found

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        images, labels = images.flatten(2).contiguous(), labels.contiguous()
        found = images.new_empty(self._trials)
        self._call(self._losses, (images, labels), images.shape[1], found)
        return found

    def _call(self, function: "ctypes._FuncPointer", given: tuple[Tensor, ...], batch: int, found: Tensor) -> None:
        threads = torch.get_num_threads()
        size = self._sizing(self._layers, ctypes.c_int64(self._depth), ctypes.c_int64(batch))
        if len(self._scratch) < threads * size:
            self._scratch = self._scratch.new_empty(threads * size)
        function(
            self._layers,
            ctypes.c_int64(self._trials),
            ctypes.c_int64(self._depth),
            *(ctypes.c_void_p(tensor.data_ptr()) for tensor in given),
            ctypes.c_int64(batch),
            ctypes.c_void_p(self._scratch.data_ptr()),
            ctypes.c_int64(size),
            threads,
            ctypes.c_void_p(found.data_ptr()),
        )
