"""An epoch of the paper's networks on CIFAR-100-shaped images: beside a plain loop, and of several trials at once."""

import functools
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from gcsr import Dataset, TrialConfig, TrialResult, train
from gcsr.cohort import train_cohort
from gcsr.interleaving import Interleaved, Steps
from gcsr.models import build_model
from gcsr.trainer import training
from tests.benchmarks.convolution import with_plain_convolutions
from tests.benchmarks.timing import Timing

__all__ = ["at_once_precision", "beside_plain_loop", "trials_at_once"]

_TEST_SHARE = 5  # CIFAR has a fifth as many test images as training images
_WARM = 1  # epochs that are not counted: graphs are captured, libraries set up


def _arrays(images: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    return pictures, generator.integers(0, 100, images)


def _data(images: int, device: str) -> Dataset:
    pictures, labels = _arrays(images)
    train_images = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous().to(device)
    train_labels = torch.from_numpy(labels).to(device)
    test = images // _TEST_SHARE
    one = torch.ones(1, 3, 1, 1, device=device)
    return Dataset(
        name="cifar100", train_images=train_images, train_labels=train_labels, val_images=None, val_labels=None,
        test_images=train_images[:test], test_labels=train_labels[:test], scale=one / 64, shift=-2 * one, classes=100,
    )  # fmt: skip


class _Pictures(TorchDataset):  # type: ignore[type-arg]
    """What torchvision's CIFAR100 does with its arrays."""

    def __init__(self, images: int, transform: Callable[[Any], Any]) -> None:
        self._pictures, self._labels = _arrays(images)
        self._transform = transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        return self._transform(Image.fromarray(self._pictures[index])), int(self._labels[index])


def _plain_epochs(model_name: str, images: int, device: str, epochs: int) -> Iterator[float]:
    """Seconds of each epoch of the loop that a user would write."""
    from torchvision import transforms

    whiten = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.25,) * 3)]
    crop = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    on_gpu = device == "cuda"
    loading: dict[str, Any] = {"num_workers": min(8, os.cpu_count() or 1), "pin_memory": on_gpu}
    loader = DataLoader(
        _Pictures(images, transforms.Compose(crop + whiten)), 128, shuffle=True, persistent_workers=True, **loading
    )
    pictures, labels = (each[: images // _TEST_SHARE] for each in _arrays(images))
    held = torch.stack([transforms.Compose(whiten)(picture) for picture in pictures])
    test = DataLoader(TensorDataset(held, torch.from_numpy(labels)), 1000, pin_memory=on_gpu)
    model = with_plain_convolutions(build_model(model_name, input_shape=(3, 32, 32), classes=100)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-5)
    for _ in range(epochs):
        began = time.perf_counter()
        total = 0.0
        for batch, target in loader:
            batch, target = batch.to(device, non_blocking=True), target.to(device, non_blocking=True)
            loss = cross_entropy(model(batch), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        model.eval()
        with torch.no_grad():
            _ = sum((model(batch.to(device)).argmax(1) == target.to(device)).sum().item() for batch, target in test)
        model.train()
        yield time.perf_counter() - began


def _config(model: str, **fields: Any) -> TrialConfig:
    return TrialConfig(dataset="cifar100", model=model, mode="ours_orig", lam=1e-5, **fields)


def _gcsr_epoch(model: str, precision: str, epochs: int, data: Dataset) -> float:
    """Seconds of an epoch of one trial."""
    result = train(_config(model, epochs=_WARM + epochs, precision=precision), data)
    return statistics.median(record.seconds for record in result.epochs[_WARM:])


def beside_plain_loop(device: str, model: str, images: int, epochs: int = 2) -> dict[str, Timing]:
    """Seconds of an epoch (training and test), the median of ``epochs`` after one that is not counted."""
    plain = statistics.median(list(_plain_epochs(model, images, device, _WARM + epochs))[_WARM:])
    data = _data(images, device)
    seconds = {f"{model}, plain PyTorch loop with a DataLoader": plain}
    for precision in ("fp32", "tf32", "bf16") if device == "cuda" else ("fp32", "bf16"):
        seconds[f"{model}, gcsr, {precision}"] = _gcsr_epoch(model, precision, epochs, data)
    if device == "cuda":
        with mock.patch.dict(os.environ, {"GCSR_GRAPHS": "0"}):
            seconds[f"{model}, gcsr, bf16, without CUDA graphs"] = _gcsr_epoch(model, "bf16", epochs, data)
    return {name: Timing(taken, taken / plain) for name, taken in seconds.items()}


def at_once_precision(device: str) -> str:
    """What several trials at once are measured in."""
    return "bf16" if device == "cuda" else "fp32"


def trials_at_once(device: str, model: str, images: int, counts: tuple[int, ...] = (2, 4, 8)) -> dict[str, Timing]:
    """Seconds an epoch and trial where trials share the device: interleaved, as a cohort, in as many processes."""
    data = _data(images, device)
    epochs, precision = 3, at_once_precision(device)

    def cohort(count: int) -> float:
        configs = [_config(model, epochs=_WARM + epochs, precision=precision, seed=seed) for seed in range(count)]
        results = train_cohort(configs, data)  # an epoch's seconds are divided by the trials already
        return statistics.median(record.seconds for record in results[0].epochs[_WARM:])

    seconds: Mapping[str, float] = {
        f"{model}, alone": _gcsr_epoch(model, precision, epochs, data),
        **{f"{model}, {count} interleaved": _interleaved(model, count, epochs, data) for count in counts},
        **{f"{model}, cohort of {count}": cohort(count) for count in counts},
        **{f"{model}, {count} processes": _processes(device, model, images, count, epochs) for count in counts},
    }
    return {name: Timing(taken, taken / next(iter(seconds.values()))) for name, taken in seconds.items()}


def _interleaved(model: str, count: int, epochs: int, data: Dataset) -> float:
    """Seconds an epoch and trial of ``count`` trials of one process, from when the last has warmed up."""
    ends: dict[int, list[float]] = {seed: [] for seed in range(count)}

    def begun(seed: int) -> Steps[TrialResult]:
        config = _config(model, epochs=_WARM + epochs, precision=precision, seed=seed)
        return training(config, data, on_epoch=lambda record: ends[seed].append(time.perf_counter()))

    device, precision = data.train_images.device, at_once_precision(data.train_images.device.type)
    for ended in Interleaved([functools.partial(begun, seed) for seed in range(count)], device, precision, count):
        if isinstance(ended.result, Exception):
            raise ended.result
    last, warm = (max(end[epoch] for end in ends.values()) for epoch in (-1, _WARM - 1))
    return (last - warm) / epochs / count


def _processes(device: str, model: str, images: int, count: int, epochs: int) -> float:
    """Seconds an epoch and trial of ``count`` processes, from when all have warmed up until the last one is done."""
    context = multiprocessing.get_context("spawn")
    ready, told = context.Barrier(count), context.SimpleQueue()
    arguments = (device, model, images, epochs, ready, told)
    running = [context.Process(target=_one_process, args=(*arguments, seed)) for seed in range(count)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    if any(process.exitcode for process in running):
        raise RuntimeError(f"{sum(bool(process.exitcode) for process in running)} of {count} processes failed")
    times = [told.get() for _ in running]
    return (max(end for _, end in times) - min(began for began, _ in times)) / epochs / count


def _one_process(
    device: str, model: str, images: int, epochs: int, ready: threading.Barrier, told: Any, seed: int
) -> None:
    torch.set_num_threads(1)
    marks = []

    def warmed_up(record: Any) -> None:
        if record.epoch == _WARM - 1:
            ready.wait()
            marks.append(time.monotonic())

    config = _config(model, epochs=_WARM + epochs, precision=at_once_precision(device), seed=seed)
    train(config, _data(images, device), on_epoch=warmed_up)
    told.put((marks[0], time.monotonic()))
