"""Torch's generators of random numbers: a training seeds its own, and the caller's state comes back."""

import contextlib
from collections.abc import Iterator

import torch

from gcsr.precision import arithmetic

__all__ = ["gpu_generator", "seed_generators", "undisturbed"]


@contextlib.contextmanager
def undisturbed(device: torch.device, precision: str) -> Iterator[None]:
    """Around trainings in ``precision``: the caller's random state and settings of arithmetic come back."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), arithmetic(precision):
        yield


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed those of torch's generators that a training on ``device`` draws from, which `undisturbed` brings back."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        gpu_generator(device).manual_seed(seed)


def gpu_generator(device: torch.device) -> torch.Generator:
    """Torch's default generator on a GPU."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]
