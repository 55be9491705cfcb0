"""Arithmetic of convolutions and matrix products; weights, gradients, penalty and π are always float32."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["arithmetic", "autocast", "is_emulated"]


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Around the forward pass: bf16 activations for ``bf16``, nothing otherwise."""
    if precision != "bf16":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def is_emulated(precision: str, device: torch.device) -> bool:
    """Whether the device has no instructions for this precision, so that it is many times slower than float32."""
    if precision != "bf16" or device.type != "cpu":
        return False
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextlib.contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Around a training: what NVIDIA GPUs may do. The former settings come back.

    Whether they may round float32 factors to TF32: torch allows it in convolutions by default, so that ``fp32`` has to
    forbid it. And only convolutions that give the same bits every time: a trial that resumes ends as one that was
    never interrupted.
    """
    cudnn = torch.backends.cudnn
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, cudnn.conv)  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    deterministic, benchmark = cudnn.deterministic, cudnn.benchmark
    try:
        for place in places:
            place.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        cudnn.deterministic, cudnn.benchmark = True, False  # the fastest this time may be another one next time
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = deterministic, benchmark
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value
