"""What of torch's state a training sets for itself, generators of random numbers above all; the caller's comes back."""

import contextlib
from collections.abc import Iterator

import torch

from gcsr.precision import arithmetic

__all__ = ["gpu_generator", "seed_generators", "undisturbed"]


@contextlib.contextmanager
def undisturbed(device: torch.device, precision: str) -> Iterator[None]:
    """Around trainings in ``precision``: they go as in a fresh process, and the caller's state comes back.

    That is the random state, settings of arithmetic, the default dtype, and what the caller's own ``torch.no_grad``,
    ``inference_mode`` and ``autocast`` set.
    """
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        arithmetic(precision),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),  # around backward passes, too, which an outer one would lower
        _default_dtype(torch.float32),
    ):
        yield


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed those of torch's generators that a training on ``device`` draws from, which `undisturbed` brings back."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        gpu_generator(device).manual_seed(seed)


def gpu_generator(device: torch.device) -> torch.Generator:
    """Torch's default generator on a GPU."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]
