"""The Pareto front of a search with several objectives."""

from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["unbeaten"]

T = TypeVar("T")


def unbeaten(ordered: Sequence[T], values: Callable[[T], Sequence[float]]) -> list[T]:
    """What nothing before it beats: nothing else is as good in every objective, and better in one.

    Args:
        ordered: the best by the first objective first.
        values: of each, what it reached in every objective; higher is better.
    """
    front: list[T] = []
    for each in ordered:
        if not any(_beats(values(other), values(each)) for other in front):
            front.append(each)
    return front


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))
