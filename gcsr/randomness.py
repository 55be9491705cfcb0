"""What of torch's state a training sets for itself, generators of random numbers above all; the caller's comes back."""

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch

from gcsr.precision import arithmetic

__all__ = ["gpu_generator", "seed_generators", "seed_python", "undisturbed"]


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
        _python_generators(),
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


@contextlib.contextmanager
def _python_generators() -> Iterator[None]:
    pythons, numpys = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed those of torch's generators that a training on ``device`` draws from, which `undisturbed` brings back."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        gpu_generator(device).manual_seed(seed)


def seed_python(seed: int, *moment: object) -> None:
    """Seed Python's and numpy's generators, from which only networks of a user's own draw, for a moment of a training.

    Each moment has numbers of its own: so none are to be saved, nor kept from trainings that take turns with this one.
    """
    text = "/".join(map(str, (seed, *moment)))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
    random.seed(number)
    np.random.seed(number)


def gpu_generator(device: torch.device) -> torch.Generator:
    """Torch's default generator on a GPU."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]
