"""Counting correct answers, of one network or of a stack of them."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gcsr.graph import Capture, ReplayedStep

__all__ = ["CorrectAnswers"]

_BATCH = 1000  # images of CIFAR's size; of larger ones fewer
_BATCH_VALUES = _BATCH * 32 * 32 * 3


class CorrectAnswers:
    """Counts correct answers in batches, which are captured like training steps.

    Args:
        shape: ``()`` for one network, ``(K,)`` for a stack of K.
        device: of the images.
        capture: how batches are captured; None to do each.
        at_least: images that memory suffices for, however large they are.
    """

    def __init__(
        self, shape: tuple[int, ...], device: torch.device, capture: Capture | None, *, at_least: int = 1
    ) -> None:
        self._at_least = at_least
        self._correct = torch.zeros(shape, dtype=torch.int64, device=device)
        self._step = ReplayedStep(capture, after_capture=lambda: None)

    @torch.no_grad()
    def count(self, answers: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
        """How many images are classified correctly.

        Args:
            answers: the classes ``[…, B]`` that images ``[B, C, H, W]`` are given; the same every time.
            images: ``[N, C, H, W]``.
            labels: ``[N]``.

        Returns:
            int64 of the shape given.
        """
        self._correct.zero_()
        most = min(_BATCH, max(self._at_least, _BATCH_VALUES // images.shape[1:].numel()))
        # As large as one another: a network may take a last batch of one image for an image.
        batches = max(1, -(-len(labels) // most))
        for batch, target in zip(images.tensor_split(batches), labels.tensor_split(batches), strict=True):
            self._step(partial(self._count, answers), None, len(batch), batch, target)
        return self._correct.clone()

    def _count(self, answers: Callable[[Tensor], Tensor], size: int, images: Tensor, labels: Tensor) -> None:
        self._correct += (answers(images) == labels).sum(-1)
