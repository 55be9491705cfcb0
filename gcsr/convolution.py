"""Convolutions over images of a few pixels, on CPUs: as matrix products, for which processors are made.

AlexNet ends in images of 2×2 pixels, VGG in images of 4×4 and 2×2. Much of what a 3×3 convolution multiplies there is
padding, and libraries for convolutions are made for large images.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

__all__ = ["Convolution"]

# Measured at the width of the paper's networks, forward and backward: `python -m tests.benchmarks convolution`.
_TAPS = 16  # pixels of an image in float32, whose products add up in place
_WHOLE = 4  # pixels of an image in bfloat16, all of which are one row of a product
_PATCHES = 16  # pixels of a result, the patch of each of which is one row; in bfloat16, where torch is slowest
_TURNED = 512  # channels of a result in bfloat16, from which on a product is faster of rows than of columns
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
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        geometry = tuple(int(each[0]) for each in (self.kernel_size, self.stride, self.padding))
        product = _product(images, dtype, *geometry) if self._is_ours(images, dtype) else None
        if product is None:
            return super().forward(images)
        result: Tensor
        result, *_ = product.apply(images.to(dtype), self.weight, self.bias, *geometry)
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


def _product(images: Tensor, dtype: torch.dtype, kernel: int, stride: int, padding: int) -> Any:
    """Which of the products below is faster than torch's convolution, in arithmetic of this dtype; None for none."""
    height, width = (1 + (size + 2 * padding - kernel) // stride for size in images.shape[2:])
    of_all_pixels = stride == 1 and images.shape[2:] == (height, width)
    if dtype == torch.float32:
        return _Taps if of_all_pixels and height * width <= _TAPS else None
    if of_all_pixels and height * width <= _WHOLE:
        return _WholeImages
    if stride == 1:
        return _Patches if height * width <= _PATCHES else None
    return _Patches if height * width <= _DISTANT_PATCHES and not images.requires_grad else None


class _Taps(torch.autograd.Function):
    """A product for each tap of the kernel and the pixels that it reaches: nothing is multiplied with padding.

    Of channels-last weights, as a trial's are, the weights of a tap are a matrix where they lie.
    """

    @staticmethod
    def forward(images: Tensor, weight: Tensor, bias: Tensor, kernel: int, stride: int, padding: int) -> tuple[Tensor]:
        n, _, height, width = images.shape
        pixels, taps = _pixels(images), weight.permute(2, 3, 0, 1)
        result = bias.repeat(len(pixels), 1)
        for tap, to, of in _reached(height, width, kernel, padding, n):
            result[to].addmm_(pixels[of], taps[tap].t())
        return (_of_pixels(result, images),)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor]) -> None:
        images, weight, _, ctx.kernel, _, ctx.padding = inputs
        ctx.save_for_backward(images, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        n, channels, height, width = images.shape
        pixels, taps, grads = _pixels(images), weight.permute(2, 3, 0, 1), _pixels(grad)
        of_taps = grads.new_zeros(len(weight), ctx.kernel, ctx.kernel, channels).permute(1, 2, 0, 3)
        of_pixels = grads.new_zeros(len(pixels), channels) if ctx.needs_input_grad[0] else None
        for tap, to, of in _reached(height, width, ctx.kernel, ctx.padding, n):
            of_taps[tap].addmm_(grads[to].t(), pixels[of])
            if of_pixels is not None:
                of_pixels[of].addmm_(grads[to], taps[tap])
        of_images = None if of_pixels is None else _of_pixels(of_pixels, images)
        return of_images, of_taps.permute(2, 3, 0, 1), grad.sum((0, 2, 3)), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor], tuple[int]]:
        """One after the other: torch has no products of stacked matrices that add up in place."""
        alone = []
        for k in range(info.batch_size):
            own = (x if dim is None else x.select(dim, k) for x, dim in zip(inputs, in_dims, strict=True))
            (result,) = _Taps.apply(*own)
            alone.append(result)
        return (torch.stack(alone),), (0,)


class _WholeImages(torch.autograd.Function):
    """Each image a row, of all its pixels, multiplied with a row for each pixel of the result.

    In bfloat16, where products that add up in place would round each time.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        images: Tensor, weight: Tensor, bias: Tensor, kernel: int, stride: int, padding: int
    ) -> tuple[Tensor, Tensor]:
        n, channels, height, width = images.shape
        out, taps = len(weight), weight.permute(0, 2, 3, 1)
        everywhere = padding >= max(height, width) - 1  # every pixel reaches every one
        new = weight.new_empty if everywhere else weight.new_zeros
        pixels = new(height, width, out, height, width, channels, dtype=images.dtype)
        for reached, used in _windows(height, width, kernel, padding):
            pixels[reached] = taps[used]
        matrix = pixels.view(height * width * out, height * width * channels)
        result = torch.addmm(bias.to(images.dtype).repeat(height * width), _rows(images), matrix.t())
        return _images(result.view(n, height, width, out), images), matrix

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        images, _, _, ctx.kernel, _, ctx.padding = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(images, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        images, matrix = ctx.saved_tensors
        n, channels, height, width = images.shape
        of_images = None
        if ctx.needs_input_grad[0]:
            of_images = _images((_rows(grad) @ matrix).view(n, height, width, channels), images)
        pixels = (_rows(grad).t() @ _rows(images)).view(height, width, -1, height, width, channels)
        taps = pixels.new_zeros(pixels.shape[2], ctx.kernel, ctx.kernel, channels, dtype=torch.float32)
        for reached, used in _windows(height, width, ctx.kernel, ctx.padding):
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
        result = torch.addmm(bias.to(images.dtype), rows, _rows(weight.to(images.dtype)).t())
        return _images(result.view(len(images), height, width, len(weight)), images), rows

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        images, weight, _, _, _, ctx.padding = inputs
        ctx.images = images.shape
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        weight, rows = ctx.saved_tensors
        out, channels, kernel, _ = weight.shape
        grads = grad.permute(0, 2, 3, 1).reshape(-1, out)
        of_images = None
        if ctx.needs_input_grad[0]:
            of_rows = grads @ _rows(weight.to(grad.dtype))
            of_images = _images(_added_up(of_rows, ctx.images, kernel, ctx.padding), grad)
        turned = grads.t().contiguous() if out >= _TURNED else grads.t()
        taps = (turned @ rows).view(out, kernel, kernel, channels).float()
        return of_images, taps.permute(0, 3, 1, 2), grad.sum((0, 2, 3), dtype=torch.float32), None, None, None


def _span(tap: int, result: int, size: int, padding: int) -> slice:
    """Which pixels of a line of the result a tap adds to: those for which it is at a pixel, and not at padding."""
    first, end = max(0, padding - tap), min(result, size + padding - tap)
    return slice(first, max(first, end))


def _moved(span: slice, distance: int) -> slice:
    return slice(span.start + distance, span.stop + distance)


def _reached(
    height: int, width: int, kernel: int, padding: int, n: int
) -> Iterator[tuple[tuple[int, int], slice, slice]]:
    """Each tap, rows of ``n`` results, in the order of `_pixels`, that it adds to, and the images' rows at which it is.

    All that a tap reaches in as few slices as there can be: of whole images, or of a line of pixels each.
    """
    for y, x in itertools.product(range(kernel), repeat=2):
        lines, span = _span(y, height, height, padding), _span(x, width, width, padding)
        if span == slice(0, width):
            spans = [slice(lines.start * width, lines.stop * width)]
        else:
            spans = [_moved(span, line * width) for line in range(lines.start, lines.stop)]
        distance = (y - padding) * width + x - padding
        for to in spans:
            of = _moved(to, distance)
            yield (y, x), slice(to.start * n, to.stop * n), slice(of.start * n, of.stop * n)


def _windows(height: int, width: int, kernel: int, padding: int) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """For each pixel of a result, the image's pixels that it is made of, and the kernel's taps at these."""
    for y, x in itertools.product(range(height), range(width)):
        reached, used = [], []
        for place, size in ((y, height), (x, width)):
            span = slice(max(0, place - padding), min(size, place - padding + kernel))
            reached.append(span)
            used.append(_moved(span, padding - place))
        yield (y, x, slice(None), *reached), (slice(None), *used)


def _patches(images: Tensor, kernel: int, stride: int, padding: int) -> tuple[Tensor, int, int]:
    """``[N · height · width, kernel · kernel · C]`` of images ``[N, C, H, W]``, and the result's height and width."""
    padded = pad(images.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    patches = padded.unfold(1, kernel, stride).unfold(2, kernel, stride).permute(0, 1, 2, 4, 5, 3)
    _, height, width, *_, channels = patches.shape
    return patches.reshape(-1, kernel * kernel * channels), height, width


def _added_up(patches: Tensor, images: torch.Size, kernel: int, padding: int) -> Tensor:
    """The sums, in float32, of what each pixel of images ``[N, C, H, W]`` is in the patches, ``[N, H, W, C]``."""
    n, channels, height, width = images
    tall, wide = (size + 2 * padding - kernel + 1 for size in (height, width))
    each = patches.view(n, tall, wide, kernel, kernel, channels)
    sums = patches.new_zeros(n, height, width, channels, dtype=torch.float32)
    for y, x in itertools.product(range(kernel), repeat=2):
        lines, span = _span(y, tall, height, padding), _span(x, wide, width, padding)
        sums[:, _moved(lines, y - padding), _moved(span, x - padding)] += each[:, lines, span, y, x]
    return sums


def _pixels(images: Tensor) -> Tensor:
    """``[H · W · N, C]`` of images ``[N, C, H, W]``: the same pixel of all images lies together."""
    return images.permute(2, 3, 0, 1).flatten(0, 2)


def _of_pixels(pixels: Tensor, like: Tensor) -> Tensor:
    """The images whose `_pixels` these are, of any number of channels, in number, size and layout ``like`` these."""
    n, _, height, width = like.shape
    return _images(pixels.view(height, width, n, pixels.shape[1]).permute(2, 0, 1, 3), like)


def _rows(images: Tensor) -> Tensor:
    """``[N, H · W · C]`` of images, or weights, ``[N, C, H, W]``; if they are channels-last, without a copy."""
    return images.permute(0, 2, 3, 1).flatten(1)


def _images(pixels: Tensor, like: Tensor) -> Tensor:
    """``[N, C, H, W]`` of ``[N, H, W, C]`` in the layout of ``like``: torch goes on faster with one than with both.

    A copy, and no view: a ReLU in place of a view takes several times as long in the backward pass.
    """
    layout = torch.contiguous_format if like.is_contiguous() else torch.channels_last
    return pixels.permute(0, 3, 1, 2).to(like.dtype, memory_format=layout, copy=True)
