"""The pass over memory as a Triton kernel: what `memory_pass.c` does, for NVIDIA GPUs; and the decision by its counts.

Compile it without floating-point fusion (``enable_fp_fusion=False``): a product and a sum are rounded each on their
own, as on the CPU.
"""

import ctypes

import triton
import triton.language as tl

from gcsr.memory_pass import TableEntry

__all__ = ["BLOCK", "WARPS", "decision_kernel", "pass_kernel"]

BLOCK = 1024
"""Elements of a block: |g| is summed in float32 within it, and in float64 over the blocks."""
WARPS = 4
"""Warps of a block: with 8 elements a thread the kernel needs 80 registers (sm_90), and 6 blocks share a processor."""

# Where the fields of an entry are: addresses and sizes among its 64 bit words, numbers and flags among its 32 bit ones.
_ENTRY = tl.constexpr(ctypes.sizeof(TableEntry))
_W = tl.constexpr(TableEntry.w.offset // 8)
_M = tl.constexpr(TableEntry.m.offset // 8)
_G = tl.constexpr(TableEntry.g.offset // 8)
_N = tl.constexpr(TableEntry.n.offset // 8)
_LOW = tl.constexpr(TableEntry.low.offset // 8)
_HIGH = tl.constexpr(TableEntry.high.offset // 8)
_PENALTY = tl.constexpr(TableEntry.penalty.offset // 4)
_LR = tl.constexpr(TableEntry.lr.offset // 4)
_MOMENTUM = tl.constexpr(TableEntry.momentum.offset // 4)
_DECAY = tl.constexpr(TableEntry.decay.offset // 4)
_L2 = tl.constexpr(TableEntry.l2.offset // 4)
_L1 = tl.constexpr(TableEntry.l1.offset // 4)
_SIGN = tl.constexpr(TableEntry.sign.offset // 4)
_GROUP = tl.constexpr(TableEntry.group.offset // 4)


@triton.jit
def pass_kernel(
    words,  # int64: the table that addresses and sizes are read from
    numbers,  # float32: the table that all else is read from
    flags,  # int32: the same memory
    tensor_of,  # int32 [blocks]: index of the tensor that a block belongs to
    first_block,  # int32 [tensors + 1]: number of its first block, and the end of the last
    lam_t,  # float32 [groups]
    counts,  # int32 [2, blocks + 1]: coherent, n
    sums,  # float32 [blocks]: of |g|
    stride,  # between the two rows of counts
    COUNT: tl.constexpr,
    UPDATE: tl.constexpr,
    ALIGNED: tl.constexpr,  # all addresses are multiples of 16
    SIZE: tl.constexpr,
):
    block = tl.program_id(0)
    index = tl.load(tensor_of + block)
    start = (block - tl.load(first_block + index)).to(tl.int64) * SIZE
    entry = words + index * (_ENTRY // 8)
    g = tl.load(entry + _G)
    n = tl.where(g == 0, 0, tl.load(entry + _N))  # without a gradient the tensor takes no part
    if start + SIZE <= n:  # whole blocks are read without a mask, so in words of 16 bytes
        _block(
            entry, numbers + index * (_ENTRY // 4), flags + index * (_ENTRY // 4), lam_t, counts + block,
            counts + stride + block, sums + block, start, n, COUNT, UPDATE, ALIGNED, True, SIZE,
        )  # fmt: skip
    else:
        _block(
            entry, numbers + index * (_ENTRY // 4), flags + index * (_ENTRY // 4), lam_t, counts + block,
            counts + stride + block, sums + block, start, n, COUNT, UPDATE, ALIGNED, False, SIZE,
        )  # fmt: skip


@triton.jit
def _block(
    entry, numbers, flags, lam_t, coherent_out, n_out, sum_out, start, n,
    COUNT: tl.constexpr, UPDATE: tl.constexpr, ALIGNED: tl.constexpr, WHOLE: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    where = start + tl.arange(0, SIZE)
    inside = where < n
    g_at = _pointer(tl.load(entry + _G), ALIGNED) + where
    w_at = _pointer(tl.load(entry + _W), ALIGNED) + where
    g = _load(g_at, inside, WHOLE)
    w = _load(w_at, inside, WHOLE)
    if COUNT:
        penalty = tl.load(numbers + _PENALTY)
        if tl.load(flags + _SIGN) != 0:
            p = tl.where(w > 0, penalty, tl.where(w < 0, -penalty, 0.0))
        else:
            p = penalty * w
        t = g + p
        counted = (where >= tl.load(entry + _LOW)) & (where < tl.load(entry + _HIGH))
        coherent = counted & (((g > 0) & (t > 0)) | ((g < 0) & (t < 0)))
        learning = counted & (g != 0)
        tl.store(coherent_out, tl.sum(coherent.to(tl.int32), 0))
        tl.store(n_out, tl.sum(learning.to(tl.int32), 0))
        tl.store(sum_out, tl.sum(tl.where(counted, tl.abs(g), 0.0), 0))
    if UPDATE:
        # torch.optim.SGD's step with the penalty of L2 in front (before the momentum) and eq. 10 of L1 behind it.
        lam = tl.load(lam_t + tl.load(flags + _GROUP))
        lr = tl.load(numbers + _LR)
        decay = tl.load(numbers + _DECAY) + tl.load(numbers + _L2) * lam
        z = tl.load(numbers + _L1) * lam
        step = tl.where(decay != 0, g + decay * w, g)
        m_address = tl.load(entry + _M)
        if m_address != 0:
            m_at = _pointer(m_address, ALIGNED) + where
            step = tl.load(numbers + _MOMENTUM) * _load(m_at, inside, WHOLE) + step
            _store(m_at, step, inside, WHOLE)
        w = w - lr * step
        if z != 0:
            w = w - tl.where(w > z, z, tl.where(w < -z, -z, w))
        _store(w_at, w, inside, WHOLE)


@triton.jit
def _pointer(address, ALIGNED: tl.constexpr):
    pointer = address.to(tl.pointer_type(tl.float32))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _load(at, inside, WHOLE: tl.constexpr):
    if WHOLE:
        values = tl.load(at)
    else:
        values = tl.load(at, mask=inside, other=0.0)
    return values


@triton.jit
def _store(at, values, inside, WHOLE: tl.constexpr):
    if WHOLE:
        tl.store(at, values)
    else:
        tl.store(at, values, mask=inside)


@triton.jit
def decision_kernel(
    counts,  # int32 [2, blocks + 1]: coherent, n
    sums,  # float32 [blocks]: of |g|
    blocks,
    stride,  # between the two rows of counts
    lam,  # float32
    mu,  # float64
    certain,  # bool: λ is imposed in this epoch, where that does not depend on π
    epoch,  # float64 [4]: of the running epoch: steps, π, imposed, Σ|g|
    pi_out,  # float64
    lam_out,  # float32: lam_t
    BY_PI: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Adds up what a counting pass found, and decides: eq. 9, eq. 8."""
    coherent = tl.zeros((SIZE,), tl.int64)
    n = tl.zeros((SIZE,), tl.int64)
    total = tl.zeros((SIZE,), tl.float64)
    for first in range(0, blocks, SIZE):
        at = first + tl.arange(0, SIZE)
        inside = at < blocks
        coherent += tl.load(counts + at, mask=inside, other=0).to(tl.int64)
        n += tl.load(counts + stride + at, mask=inside, other=0).to(tl.int64)
        total += tl.load(sums + at, mask=inside, other=0.0).to(tl.float64)
    grad_sum = tl.sum(total, 0)
    rate = tl.sum(coherent, 0).to(tl.float64) / tl.maximum(tl.sum(n, 0), 1).to(tl.float64)
    pi = tl.where(grad_sum < float("inf"), rate, float("nan"))  # nor is NaN less
    if BY_PI:
        imposed = pi > tl.load(mu)
    else:
        imposed = tl.load(certain).to(tl.int32) != 0
    tl.store(pi_out, pi)
    tl.store(lam_out, tl.where(imposed, tl.load(lam), 0.0))
    tl.store(epoch, tl.load(epoch) + 1.0)
    tl.store(epoch + 1, tl.load(epoch + 1) + pi)
    tl.store(epoch + 2, tl.load(epoch + 2) + imposed.to(tl.float64))
    tl.store(epoch + 3, tl.load(epoch + 3) + grad_sum)
