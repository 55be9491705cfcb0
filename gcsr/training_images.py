"""The training images as a network takes them: batch after batch, in a new order each epoch."""

from collections.abc import Iterator

import torch
from torch import Tensor

from gcsr.augment import crop_and_flip, draw_crops
from gcsr.config import TrialConfig
from gcsr.data import Dataset
from gcsr.parallel import Workers

__all__ = ["TrainingImages"]

_MOST_READY = 1 << 28  # values, which take 1 GiB: more than the data sets that gcsr knows have


class TrainingImages:
    """A trial's training images; order and crops are the same for every network and on every rank.

    Args:
        config: the trial.
        data: its data.
        workers: each of which takes its share of every batch.
        layout: of the memory of what `network_input` returns.
        fused: cropped, mirrored and normalized by one kernel of our own, on a GPU.

    Attributes:
        generator: that order and crops draw from, and nothing else does.
        ready: all of them as a network takes them, float32 ``[N, C, H, W]``; None where each batch is made when its
            turn comes, as it is augmented, or as all would take too much memory.
    """

    def __init__(
        self,
        config: TrialConfig,
        data: Dataset,
        workers: Workers,
        *,
        layout: torch.memory_format = torch.contiguous_format,
        fused: bool = False,
    ) -> None:
        self._config, self._data, self._workers = config, data, workers
        self._layout, self._fused = layout, fused
        self.generator = torch.Generator(data.train_images.device).manual_seed(config.seed)
        all_at_once = not config.augment and data.train_images.numel() <= _MOST_READY
        self.ready = data.normalized(data.train_images) if all_at_once else None

    def draw_order(self) -> Tensor:
        """The next epoch's: int64 ``[N]``."""
        return torch.randperm(len(self._data.train_labels), generator=self.generator, device=self.generator.device)

    def batches(self, order: Tensor) -> Iterator[tuple[int, list[Tensor]]]:
        """The batches of an epoch: how many images each has on all ranks, and what `network_input` takes of it."""
        # Drawn for whole batches, so that an image is cropped alike however many ranks there are.
        drawn = (order, draw_crops(len(order), self.generator)) if self._config.augment else (order,)
        for batch in zip(*(each.split(self._config.batch_size) for each in drawn), strict=True):
            yield len(batch[0]), [self._workers.share(each) for each in batch]

    def network_input(self, rows: Tensor, crops: Tensor | None = None) -> Tensor:
        """Network input for some rows of the training images.

        Args:
            rows: int64 ``[B]``.
            crops: of `gcsr.augment.draw_crops`; None for images that are not augmented.

        Returns:
            ``[B, C, H, W]``, float32 or, where `fused`, of the trial's precision.
        """
        if self.ready is not None:
            images = self.ready[rows]
        elif crops is None:
            images = self._data.normalized(self._data.train_images[rows])
        elif self._fused:
            from gcsr.batches import augmented  # importing Triton takes longer than all of gcsr

            dtype = torch.bfloat16 if self._config.precision == "bf16" else torch.float32
            return augmented(self._data, rows, crops, dtype)
        else:
            images = self._data.normalized(crop_and_flip(self._data.train_images[rows], crops))
        return images.contiguous(memory_format=self._layout)
