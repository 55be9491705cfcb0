"""Paired timings: everything is a ratio to something else, measured in turns, because machines are shared and noisy."""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

__all__ = ["Timing", "paired"]


@dataclass(frozen=True, slots=True)
class Timing:
    """Medians over the rounds.

    Attributes:
        seconds: of one call.
        ratio: to the first of the functions timed together, round by round.
    """

    seconds: float
    ratio: float


def paired(
    functions: Mapping[str, Callable[[], object]], *, rounds: int, calls: int = 1, device: str = "cpu"
) -> dict[str, Timing]:
    """Time functions in turns, ``calls`` calls a turn, after one uncounted round; the first is the reference.

    Each round has an order of its own: what runs behind an update of all weights also waits until that has reached
    memory, and no function shall be the one that always does.
    """
    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in order.sample(list(functions.items()), len(functions)):
            _wait(device)
            began = time.perf_counter()
            for _ in range(calls):
                function()
            _wait(device)
            if number:
                seconds[name].append((time.perf_counter() - began) / calls)
    reference = next(iter(seconds.values()))
    return {
        name: Timing(statistics.median(taken), statistics.median(a / b for a, b in zip(taken, reference, strict=True)))
        for name, taken in seconds.items()
    }


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
