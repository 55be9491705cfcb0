"""Arithmetic of convolutions and matrix products; weights, gradients, penalty and π are always float32."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["arithmetic", "autocast", "is_emulated", "leaves_tensor_cores_idle", "lowered"]


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Around the forward pass: bf16 activations for ``bf16``, nothing otherwise."""
    if precision != "bf16":
        return contextlib.nullcontext()
    # Uncached: only the outermost autocast clears the cache, and in `gcsr.randomness.undisturbed` this is none, so that
    # weights would stay what they were in the first step. No weight is used twice in a pass.
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


def lowered(weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """bfloat16 copies of float32 weights, and the way back of their gradients: what autocast does, but all at once."""
    result: tuple[Tensor, ...] = _Lowered.apply(*weights)
    return result


class _Lowered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *weights: Tensor) -> tuple[Tensor, ...]:
        copies = tuple(torch.empty_like(weight, dtype=torch.bfloat16) for weight in weights)
        torch._foreach_copy_(copies, weights)
        return copies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        raised = tuple(torch.empty_like(grad, dtype=torch.float32) for grad in grads)
        torch._foreach_copy_(raised, grads)
        return raised


def is_emulated(precision: str, device: torch.device) -> bool:
    """Whether the device has no instructions for this precision, so that it is many times slower than float32."""
    if precision != "bf16" or device.type != "cpu":
        return False
    if not torch.backends.mkldnn.is_available():  # as on macOS, where the question below is not there either
        return True
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def leaves_tensor_cores_idle(precision: str, device: torch.device) -> bool:
    """Whether products and convolutions could be several times faster on this GPU in TF32."""
    if precision != "fp32" or device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


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
