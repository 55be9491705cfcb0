"""What surrounds the convolutions on NVIDIA GPUs, in Triton: batches on their way in, bias, ReLU and 2×2 max-pools.

All pictures here are channels-last: in memory ``[N, H, W, C]``. Compile without floating-point fusion
(``enable_fp_fusion=False``).
"""

import triton
import triton.language as tl

__all__ = ["activation_backward", "activation_forward", "batch_kernel", "pool_backward", "pool_forward"]


@triton.jit
def batch_kernel(
    images,  # uint8 [N, C, H, W], contiguous
    rows,  # int64 [B]: which of them
    crops,  # int64 [B, 3]: top, left, mirrored
    scale,  # float32 [C]
    shift,  # float32 [C]
    out,  # [B, C, H, W], channels-last
    elements,
    channels,
    height,
    width,
    padding,
    SIZE: tl.constexpr,
):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    inside = at < elements
    channel = at % channels
    x = (at // channels) % width
    y = (at // (channels * width)) % height
    item = at // (channels * width * height)
    crop = crops + 3 * item
    y = y + tl.load(crop, mask=inside, other=0).to(tl.int32) - padding
    left = tl.load(crop + 1, mask=inside, other=0).to(tl.int32) - padding
    mirrored = tl.load(crop + 2, mask=inside, other=0) != 0
    x = left + tl.where(mirrored, width - 1 - x, x)
    there = inside & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    row = tl.load(rows + item, mask=inside, other=0)
    pixel = tl.load(images + ((row * channels + channel) * height + y) * width + x, mask=there, other=0)
    value = tl.load(shift + channel, mask=inside, other=0.0) + pixel.to(tl.float32) * tl.load(
        scale + channel, mask=inside, other=0.0
    )
    tl.store(out + at, value, mask=inside)


@triton.jit
def activation_forward(x, bias, out, count, channels, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """``out = relu(x + bias)``; of all of them: ``[count, channels]``."""
    at, channel, inside = _tile(tl.program_id(0), count, channels, TILE, BLOCK)
    value = _load(x + at, inside) + _bias(bias, channel, channels)
    tl.store(out + at, tl.where(value < 0, 0.0, value), mask=inside)  # NaN stays


@triton.jit
def activation_backward(
    grad, out, grad_x, partial, count, channels, tiles, TILE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Gradient of x, and of the bias ``[programs, channels]`` still to be added up, float32."""
    program = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float32)
    for number in range(tiles):
        at, _, inside = _tile(program * tiles + number, count, channels, TILE, BLOCK)
        passed = tl.where(_load(out + at, inside) <= 0, 0.0, _load(grad + at, inside))
        tl.store(grad_x + at, passed, mask=inside)
        total += tl.sum(passed, 0)
    _add_up(partial, total, program, channels, BLOCK)


@triton.jit
def pool_forward(
    x, bias, out, which, count, channels, width, TILE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """``out = max_pool(relu(x + bias))`` of 2×2 pixels; width is x's, count is ``out``'s pixels.

    ``which`` (uint8) says which of the four it was, the first of equals, or 4 if none was above 0.
    """
    program = tl.program_id(0)
    at, channel, inside = _tile(program, count, channels, TILE, BLOCK)
    corner = _corner(program, channels, width, channel, TILE)
    best = _load(x + corner, inside)
    found = tl.zeros((TILE, BLOCK), tl.int32)
    for place in tl.static_range(1, 4):
        value = _load(x + corner + ((place // 2) * width + place % 2) * channels, inside)
        better = (value > best) | (value != value)
        best = tl.where(better, value, best)
        found = tl.where(better, place, found)
    best = best + _bias(bias, channel, channels)
    tl.store(out + at, tl.where(best < 0, 0.0, best), mask=inside)
    tl.store(which + at, tl.where(best <= 0, 4, found).to(tl.uint8), mask=inside)


@triton.jit
def pool_backward(
    grad, which, grad_x, partial, count, channels, width, tiles, TILE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """As `activation_backward`, of `pool_forward`."""
    program = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float32)
    for number in range(tiles):
        tile = program * tiles + number
        at, channel, inside = _tile(tile, count, channels, TILE, BLOCK)
        corner = _corner(tile, channels, width, channel, TILE)
        found = tl.load(which + at, mask=inside, other=4).to(tl.int32)
        passed = tl.where(found == 4, 0.0, _load(grad + at, inside))
        for place in tl.static_range(4):
            there = grad_x + corner + ((place // 2) * width + place % 2) * channels
            tl.store(there, tl.where(found == place, passed, 0.0), mask=inside)
        total += tl.sum(passed, 0)
    _add_up(partial, total, program, channels, BLOCK)


@triton.jit
def _tile(number, count, channels, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """Where a tile of pixels and channels lies, its channels, and what of it is there."""
    pixel = number * TILE + tl.arange(0, TILE)[:, None]
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    return pixel * channels + channel, channel, (pixel < count) & (channel < channels)


@triton.jit
def _corner(number, channels, width, channel, TILE: tl.constexpr):
    """Where, for each pixel of a tile, the upper left of the four pixels lies that it is the greatest of."""
    pixel = number * TILE + tl.arange(0, TILE)[:, None]
    x = pixel % (width // 2)
    y = pixel // (width // 2)  # of all pictures, one below the other: their heights are even
    return (2 * y * width + 2 * x) * channels + channel


@triton.jit
def _load(at, inside):
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _bias(bias, channel, channels):
    return tl.load(bias + channel, mask=channel < channels, other=0.0)


@triton.jit
def _add_up(partial, total, program, channels, BLOCK: tl.constexpr):
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tl.store(partial + program * channels + channel, total, mask=channel < channels)
