"""Data sets as whole tensors on the device: no DataLoader, no worker processes."""

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gcsr.arrays import held_out, levels, load_arrays, number_of_classes
from gcsr.config import TrialConfig
from gcsr.errors import ConfigError

__all__ = ["Dataset", "check_data", "load_dataset", "normalized"]


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

    @property
    def evaluated(self) -> list[tuple[Tensor, Tensor]]:
        """Images and labels of the test split, and of the one held out if there is any."""
        splits = [(self.test_images, self.test_labels)]
        if self.val_images is not None and self.val_labels is not None:
            splits.append((self.val_images, self.val_labels))
        return splits

    def normalized(self, images: Tensor) -> Tensor:
        """Float32 network input from uint8 images ``[N, C, H, W]``."""
        return normalized(images, self.scale, self.shift)


def normalized(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``images·scale + shift``, in the dtype of the latter; as in `Dataset`."""
    return torch.addcmul(shift, images.to(shift.dtype), scale)


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
        name: as in `TrialConfig.dataset`.
        holdout: share of the training images that becomes the validation split. Which ones depends on nothing
            but the data set, so that every trial of a sweep holds out the same images.
        inputs: one of `gcsr.names.INPUTS`.
        root: see `gcsr.arrays.data_root`.
        device: where the tensors live.

    Raises:
        DataError: the files are missing or damaged; the message says how to get them.
        ConfigError: ``holdout`` or ``inputs`` is not allowed, or nothing is left to train on.
    """
    for field, value in (("holdout", holdout), ("inputs", inputs)):
        TrialConfig.check_field(field, value)
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
        classes=number_of_classes(name, arrays),
        inputs=inputs,
    )


def _to_unit(name: str, channels: int) -> tuple[Tensor, Tensor]:
    scale = torch.full((channels,), 1 / levels(name), dtype=torch.float64)
    return scale, torch.zeros_like(scale)


def _standardizing(images: Tensor) -> tuple[Tensor, Tensor]:
    mean, deviation = _moments(images)
    return 1 / deviation, -mean / deviation


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, float64 ``[C]``, from exact histograms of the 256 levels.

    A channel that is the same everywhere, as alpha often is, has 256 for its deviation: what the test split or padding
    has there becomes less than 1, and it itself exactly 0, as division by a power of two does not round.
    """
    means, deviations = [], []
    levels = torch.arange(256, dtype=torch.float64)
    for channel in range(images.shape[1]):
        share = torch.bincount(images[:, channel].flatten().int(), minlength=256).double() / images[:, channel].numel()
        mean = (share * levels).sum()
        means.append(mean)
        deviation = (share * (levels - mean) ** 2).sum().sqrt()
        deviations.append(torch.where(deviation > 0, deviation, 256))
    return torch.stack(means), torch.stack(deviations)


def check_data(config: TrialConfig, data: Dataset) -> None:
    """Raise `ConfigError` unless ``data`` is the trial's data set, with hold-out and inputs as the trial wants them.

    Tensors are looked at, too: neither C nor a GPU's kernels ask whether what they read exists.
    """
    if data.name != config.dataset:
        raise ConfigError("dataset", config.dataset, f"{data.name}, which is the data given")
    if (config.holdout > 0) != (data.val_labels is not None):
        held_out = "a share of the images" if data.val_labels is not None else "0"
        raise ConfigError("holdout", config.holdout, f"{held_out}, as in the data given")
    if data.inputs != config.inputs:
        raise ConfigError("inputs", config.inputs, f"{data.inputs}, as the data given")
    for split in ("train", "val", "test"):
        images, labels = getattr(data, f"{split}_images"), getattr(data, f"{split}_labels")
        if labels is not None:
            _check_split(split, images, labels, data)
    expected = [1, data.train_images.shape[1], 1, 1]
    for name in ("scale", "shift"):
        found = list(getattr(data, name).shape)
        if found != expected:
            raise ConfigError(name, found, f"{expected}: one number a channel")


def _check_split(split: str, images: Tensor, labels: Tensor, data: Dataset) -> None:
    expected = [len(labels) or 1, *data.train_images.shape[1:]]
    if images.dim() != 4 or list(images.shape) != expected:
        raise ConfigError(f"{split}_images", list(images.shape), f"{expected}, as the labels and train_images")
    if labels.dim() != 1 or labels.dtype != torch.int64:
        raise ConfigError(f"{split}_labels", f"{labels.dtype} {list(labels.shape)}", "torch.int64 [N]")
    low, high = torch.stack(torch.aminmax(labels)).tolist()
    if low < 0 or high >= data.classes:
        raise ConfigError(f"{split}_labels", low if low < 0 else high, f"0 to {data.classes - 1}")
