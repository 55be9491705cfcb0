"""Convolutions over images of a few pixels, on CPUs: as matrix products, for which processors are made.

AlexNet ends in images of 2×2 pixels. A 3×3 convolution over them multiplies zeros at most of its taps; as a fully
connected layer from all pixels to all pixels it computes less than half as much.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

__all__ = ["Convolution"]

# Measured at the width of the paper's networks, forward and backward: `python -m tests.benchmarks convolution`.
_WHOLE = 4  # pixels of an image, all of which are one row of a product
_PATCHES = 16  # pixels of a result, the patch of each of which is one row; in bfloat16, where torch is slowest
_DISTANT_PATCHES = 64  # the same with a stride, so that there is less to copy


class Convolution(nn.Conv2d):
    """`torch.nn.Conv2d` of square kernels with a bias; on CPUs, where it is faster, as a matrix product.

    Args:
        channels: of the images, float32 ``[N, channels, H, W]`` (under autocast also bfloat16).
        out: channels of the result.
        kernel: height and width.
        stride: between patches, both ways.
        padding: zeros around the images.
    """

    def __init__(self, channels: int, out: int, kernel: int, *, stride: int = 1, padding: int = 0) -> None:
        super().__init__(channels, out, kernel, stride, padding)

    def forward(self, images: Tensor) -> Tensor:
        lowered = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if lowered else torch.float32
        if not self._is_ours(images, dtype):
            return super().forward(images)
        kernel, stride, padding = (int(each[0]) for each in (self.kernel_size, self.stride, self.padding))
        height, width = (1 + (size + 2 * padding - kernel) // stride for size in images.shape[2:])
        most = 0 if not lowered else _PATCHES if stride == 1 else _DISTANT_PATCHES
        product: Any
        if images.shape[2:] == (height, width) and stride == 1 and height * width <= _WHOLE:
            product = _WholeImages
        elif height * width <= most and not (stride > 1 and images.requires_grad):
            product = _Patches
        else:
            return super().forward(images)
        result: Tensor
        result, _ = product.apply(images.to(dtype), self.weight, self.bias, kernel, stride, padding)
        return result

    def _is_ours(self, images: Tensor, dtype: torch.dtype) -> bool:
        """Whether the products below are for such images and weights, in arithmetic of this dtype."""
        return (
            images.device.type == self.weight.device.type == "cpu"
            and images.dim() == 4
            and type(self.weight) in (Tensor, nn.Parameter)  # sharded weights have a convolution of their own
            and self.weight.dtype == torch.float32
            and dtype in (torch.float32, torch.bfloat16)
            and images.dtype in (torch.float32, dtype)
        )


class _WholeImages(torch.autograd.Function):
    """Each image a row, of all its pixels: for a kernel whose result is as large as the image."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        images: Tensor, weight: Tensor, bias: Tensor, kernel: int, stride: int, padding: int
    ) -> tuple[Tensor, Tensor]:
        _, channels, height, width = images.shape
        out = len(weight)
        taps = weight.permute(0, 2, 3, 1)
        pixels = weight.new_zeros(height, width, out, height, width, channels, dtype=images.dtype)
        for reached, used in _reached(height, width, kernel, padding):
            pixels[reached] = taps[used]
        matrix = pixels.view(height * width * out, height * width * channels)
        result = torch.addmm(bias.to(images.dtype).repeat(height * width), _rows(images), matrix.t())
        return _images(result, images, height, width, out), matrix

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        images, _, _, ctx.kernel, _, ctx.padding = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(images, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        images, matrix = ctx.saved_tensors
        _, channels, height, width = images.shape
        out, rows = grad.shape[1], _rows(grad)
        of_images = _images(rows @ matrix, images, height, width, channels) if ctx.needs_input_grad[0] else None
        pixels = (rows.t() @ _rows(images)).view(height, width, out, height, width, channels)
        taps = pixels.new_zeros(out, ctx.kernel, ctx.kernel, channels, dtype=torch.float32)
        for reached, used in _reached(height, width, ctx.kernel, ctx.padding):
            taps[used] += pixels[reached]
        return of_images, taps.permute(0, 3, 1, 2), grad.sum((0, 2, 3), dtype=torch.float32), None, None, None


class _Patches(torch.autograd.Function):
    """Each patch a row: the pixels that one of the result's is made of."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        images: Tensor, weight: Tensor, bias: Tensor, kernel: int, stride: int, padding: int
    ) -> tuple[Tensor, Tensor]:
        rows, height, width = _patches(images, kernel, stride, padding)
        matrix = weight.to(images.dtype).permute(0, 2, 3, 1).flatten(1)
        result = torch.addmm(bias.to(images.dtype), rows, matrix.t())
        return _images(result, images, height, width, len(weight)), rows

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, weight, _, _, _, ctx.padding = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        weight, rows = ctx.saved_tensors
        out, channels, kernel, _ = weight.shape
        of_images = None
        if ctx.needs_input_grad[0]:  # a convolution, too, of the gradient with the kernel turned around
            around, height, width = _patches(grad, kernel, 1, kernel - 1 - ctx.padding)
            turned = weight.to(grad.dtype).flip(2, 3).permute(1, 2, 3, 0).flatten(1)
            of_images = _images(around @ turned.t(), grad, height, width, channels)
        taps = (grad.permute(0, 2, 3, 1).reshape(-1, out).t() @ rows).view(out, kernel, kernel, channels).float()
        return of_images, taps.permute(0, 3, 1, 2), grad.sum((0, 2, 3), dtype=torch.float32), None, None, None


def _reached(height: int, width: int, kernel: int, padding: int) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """For each pixel of a result, the image's pixels that it is made of, and the kernel's taps at these."""
    for y in range(height):
        for x in range(width):
            reached, used = [], []
            for place, size in ((y, height), (x, width)):
                first, end = max(0, place - padding), min(size, place - padding + kernel)
                reached.append(slice(first, end))
                used.append(slice(first - place + padding, end - place + padding))
            yield (y, x, slice(None), *reached), (slice(None), *used)


def _patches(images: Tensor, kernel: int, stride: int, padding: int) -> tuple[Tensor, int, int]:
    """``[N · height · width, kernel · kernel · C]`` of images ``[N, C, H, W]``, and the result's height and width."""
    padded = pad(images.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    patches = padded.unfold(1, kernel, stride).unfold(2, kernel, stride).permute(0, 1, 2, 4, 5, 3)
    _, height, width, *_, channels = patches.shape
    return patches.reshape(-1, kernel * kernel * channels), height, width


def _rows(images: Tensor) -> Tensor:
    """``[N, H · W · C]`` of images ``[N, C, H, W]``; if they are channels-last, without a copy."""
    return images.permute(0, 2, 3, 1).flatten(1)


def _images(rows: Tensor, like: Tensor, height: int, width: int, channels: int) -> Tensor:
    """``[N, channels, height, width]`` in the layout of ``like``, with which torch goes on faster than with a mixture.

    A copy, and no view: a ReLU in place of a view takes several times as long in the backward pass.
    """
    images = rows.view(len(like), height, width, channels).permute(0, 3, 1, 2)
    return images.clone(memory_format=torch.contiguous_format if like.is_contiguous() else torch.preserve_format)
