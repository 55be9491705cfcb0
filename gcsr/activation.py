"""Bias, ReLU and max-pool after a convolution, as one operation on NVIDIA GPUs.

torch takes a kernel for each, forward and backward, and the sums of the bias's gradient take longer than a convolution
of a small network. Here it is one kernel forward, and one and a short sum backward, with the same bits every time.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gcsr.picture_kernels import activation_backward, activation_forward, pool_backward, pool_forward

__all__ = ["activated"]

_TILE = 32  # pixels
_MOST_PROGRAMS = 512  # that a gradient of the bias is added up from


def activated(x: Tensor, bias: Tensor, *, pool: bool) -> Tensor:
    """``relu(x + bias)``, with ``pool`` the greatest of every 2×2 pixels.

    Args:
        x: float32 or bfloat16 ``[N, C, H, W]``, on a GPU; for a pool, of even height and width.
        bias: float32 ``[C]``.
        pool: whether a max-pool of 2 by 2 follows.

    Returns:
        Of x's dtype, channels-last; sums are float32 inside.

    Raises:
        ValueError: x is too large, of another dtype, or has no even height and width; bias is not x's.
    """
    if x.dtype not in (torch.float32, torch.bfloat16) or (bias.dtype, bias.shape) != (torch.float32, x.shape[1:2]):
        found = f"{x.dtype} {list(x.shape)} with {bias.dtype} {list(bias.shape)}"
        raise ValueError(f"x: {found}; expected float32 or bfloat16, and a float32 bias for each channel")
    if x.numel() >= 1 << 31 or (pool and (x.shape[2] % 2 or x.shape[3] % 2)):
        raise ValueError(f"x: {list(x.shape)}; expected less than 2^31 elements, and even sizes to pool")
    result: Tensor = _Activated.apply(x, bias, pool)
    return result


class _Activated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, pool: bool) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        n, channels, height, width = x.shape
        ctx.shape = x.shape
        if pool:
            out = x.new_empty(n, height // 2, width // 2, channels).permute(0, 3, 1, 2)
            which = torch.empty_like(out, dtype=torch.uint8)
            _launch(pool_forward, out, x, bias, out, which, sizes=(width,))
            ctx.save_for_backward(which)
            return out
        out = torch.empty_like(x)
        _launch(activation_forward, out, x, bias, out)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (known,) = ctx.saved_tensors  # the output, or of a pool the place of each maximum
        n, channels, height, width = ctx.shape
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x = grad.new_empty(n, height, width, channels).permute(0, 3, 1, 2)
        tiles = -(-(grad.numel() // channels) // _TILE)
        each = max(1, -(-tiles // _MOST_PROGRAMS))
        partial = grad.new_empty(-(-tiles // each), channels, dtype=torch.float32)
        pooled = grad.shape != ctx.shape
        if pooled:
            _launch(pool_backward, grad, grad, known, grad_x, partial, sizes=(width, each), each=each)
        else:
            _launch(activation_backward, grad, grad, known, grad_x, partial, sizes=(each,), each=each)
        return grad_x, partial.sum(0), None


def _launch(kernel: Any, pixels: Tensor, *tensors: Tensor, sizes: tuple[int, ...] = (), each: int = 1) -> None:
    """Over the pixels and channels of ``pixels``, ``each`` tiles of them a program."""
    channels = pixels.shape[1]
    count = pixels.numel() // channels
    block = min(64, 1 << (channels - 1).bit_length())
    grid = (-(-count // (_TILE * each)), -(-channels // block))
    with torch.cuda.device_of(pixels):
        kernel[grid](*tensors, count, channels, *sizes, TILE=_TILE, BLOCK=block, enable_fp_fusion=False)
