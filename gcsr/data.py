"""Data sets as whole tensors on the device: no DataLoader, no worker processes."""

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gcsr.arrays import CLASSES, LEVELS, held_out, load_arrays

__all__ = ["Dataset", "load_dataset"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """One data set on one device, split.

    Attributes:
        name: as in `TrialConfig.dataset`.
        train_images, val_images, test_images: uint8 ``[N, C, H, W]``; ``val_images`` is None without hold-out.
        train_labels, val_labels, test_labels: int64 ``[N]``.
        scale, shift: float32 ``[1, C, 1, 1]``; ``images·scale + shift`` is what the network sees.
        classes: number of classes.
        inputs: what scale and shift make of the images, as in `TrialConfig.inputs`.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    val_images: Tensor | None
    val_labels: Tensor | None
    test_images: Tensor
    test_labels: Tensor
    scale: Tensor
    shift: Tensor
    classes: int
    inputs: str = "standardized"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    def normalized(self, images: Tensor) -> Tensor:
        """Float32 network input from uint8 images ``[N, C, H, W]``."""
        return torch.addcmul(self.shift, images.float(), self.scale)


def load_dataset(
    name: str,
    *,
    holdout: float = 0.0,
    inputs: str = "standardized",
    root: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
) -> Dataset:
    """Load, split and move a data set.

    Args:
        name: one of `gcsr.names.DATASETS`.
        holdout: share of the training images that becomes the validation split. Which ones depends on nothing
            but the data set, so that every trial of a sweep holds out the same images.
        inputs: one of `gcsr.names.INPUTS`.
        root: see `gcsr.arrays.data_root`.
        device: where the tensors live.

    Raises:
        DataError: the files are missing or damaged; the message says how to get them.
        ConfigError: nothing is left to train on.
    """
    arrays = load_arrays(name, root)
    train = torch.from_numpy(arrays["train_images"]).permute(0, 3, 1, 2)
    labels = torch.from_numpy(arrays["train_labels"].astype(np.int64))
    test = torch.from_numpy(arrays["test_images"]).permute(0, 3, 1, 2)
    test_labels = torch.from_numpy(arrays["test_labels"].astype(np.int64))
    val = val_labels = None
    if holdout > 0:
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(train)))
        held = held_out(len(train), holdout)
        val, val_labels = train[order[:held]], labels[order[:held]]
        train, labels = train[order[held:]], labels[order[held:]]
    scale, shift = _standardizing(train) if inputs == "standardized" else _to_unit(name, train.shape[1])
    return Dataset(
        name=name,
        train_images=train.contiguous().to(device),
        train_labels=labels.to(device),
        val_images=None if val is None else val.contiguous().to(device),
        val_labels=None if val_labels is None else val_labels.to(device),
        test_images=test.contiguous().to(device),
        test_labels=test_labels.to(device),
        scale=scale.float().view(1, -1, 1, 1).to(device),
        shift=shift.float().view(1, -1, 1, 1).to(device),
        classes=CLASSES[name],
        inputs=inputs,
    )


def _to_unit(name: str, channels: int) -> tuple[Tensor, Tensor]:
    scale = torch.full((channels,), 1 / LEVELS[name], dtype=torch.float64)
    return scale, torch.zeros_like(scale)


def _standardizing(images: Tensor) -> tuple[Tensor, Tensor]:
    mean, deviation = _moments(images)
    return 1 / deviation, -mean / deviation


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, float64 ``[C]``, from exact histograms of the 256 levels."""
    means, deviations = [], []
    levels = torch.arange(256, dtype=torch.float64)
    for channel in range(images.shape[1]):
        share = torch.bincount(images[:, channel].flatten().int(), minlength=256).double() / images[:, channel].numel()
        mean = (share * levels).sum()
        means.append(mean)
        deviations.append(((share * (levels - mean) ** 2).sum()).sqrt().clamp(min=1e-6))
    return torch.stack(means), torch.stack(deviations)
