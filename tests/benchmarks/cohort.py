"""Trials on digits: alone, and several trained together, beside the loop that one would write in PyTorch."""

import torch
from torch.nn.functional import cross_entropy

from gcsr import Dataset, TrialConfig, load_dataset, train
from gcsr.cohort import train_cohort
from gcsr.models import build_model
from tests.benchmarks.timing import Timing, paired

__all__ = ["cohorts"]

EPOCHS = 10


def _plain_loop(model_name: str, data: Dataset, seed: int) -> list[float]:
    """The same training without any gate: autograd, torch's fused SGD, the test images after every epoch."""
    torch.manual_seed(seed)
    model = build_model(model_name, input_shape=data.input_shape, classes=data.classes).to(data.train_images.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=True)
    images, test_images = data.normalized(data.train_images), data.normalized(data.test_images)
    accuracies = []
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images), device=images.device).split(128):
            optimizer.zero_grad()
            cross_entropy(model(images[rows]), data.train_labels[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            accuracies.append((model(test_images).argmax(1) == data.test_labels).float().mean().item())
    return accuracies


def cohorts(device: str, model: str, sizes: tuple[int, ...] = (1, 4, 8, 32)) -> dict[str, Timing]:
    """Seconds a trial of ten epochs on digits, one thread."""
    data = load_dataset("digits", device=device)

    def trials(count: int) -> list[TrialConfig]:
        return [TrialConfig(model=model, mode="ours_orig", lam=1e-3, seed=seed, epochs=EPOCHS) for seed in range(count)]

    functions = {
        f"{model}, plain PyTorch loop without a gate": lambda: [_plain_loop(model, data, seed) for seed in range(4)],
        f"{model}, alone": lambda: [train(config, data) for config in trials(4)],
    }
    for size in sizes:
        functions[f"{model}, {size} together"] = lambda size=size: train_cohort(trials(size), data)  # type: ignore[misc]
    counts = (4, 4, *sizes)
    timed = paired(functions, rounds=5, device=device)
    return {
        name: Timing(timing.seconds / count, timing.ratio * 4 / count)
        for (name, timing), count in zip(timed.items(), counts, strict=True)
    }
