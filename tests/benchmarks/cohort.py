"""Trials trained as one batched computation beside the same trials one after the other."""

from gcsr import TrialConfig, load_dataset, train
from gcsr.cohort import train_cohort
from tests.benchmarks.timing import Timing, paired

__all__ = ["cohorts"]

EPOCHS = 10


def cohorts(device: str, model: str, sizes: tuple[int, ...] = (1, 4, 8, 32)) -> dict[str, Timing]:
    """Seconds a trial of ten epochs on digits, one thread."""
    data = load_dataset("digits", device=device)

    def trials(count: int) -> list[TrialConfig]:
        return [TrialConfig(model=model, mode="ours_orig", lam=1e-3, seed=seed, epochs=EPOCHS) for seed in range(count)]

    functions = {f"{model}, alone": lambda: [train(config, data) for config in trials(4)]}
    for size in sizes:
        functions[f"{model}, {size} together"] = lambda size=size: train_cohort(trials(size), data)  # type: ignore[misc]
    counts = (4, *sizes)
    timed = paired(functions, rounds=3, device=device)
    alone = 4 / next(iter(timed.values())).seconds
    return {
        name: Timing(timing.seconds / count, timing.seconds / count * alone)
        for (name, timing), count in zip(timed.items(), counts, strict=True)
    }
