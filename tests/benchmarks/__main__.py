"""``python -m tests.benchmarks [PART …]``: every claim about speed, as ratios of one run."""

import os
import platform
from collections.abc import Callable, Mapping

import click
import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks import cohort, convolution, epoch, gate
from tests.benchmarks.timing import Timing

_Run = tuple[str, Callable[[], Mapping[str, Timing]]]
PARTS = ("gate", "training", "convolution", "epoch", "at-once", "cohort", "service", "growth", "scaling")


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(PARTS))
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=os.cpu_count(), show_default=True, help="CPU threads.")
@click.option("--rounds", type=click.IntRange(1), default=30, show_default=True, help="Turns of each short timing.")
@click.option("--trials", type=click.IntRange(8), default=2000, show_default=True, help="Trivial trials of growth.")
@click.option("--images", type=click.IntRange(256), help="Of an epoch.  [default: 50000 on a GPU, 1280 on CPUs]")
def main(parts: tuple[str, ...], device: str, threads: int, rounds: int, trials: int, images: int | None) -> None:
    """Measure PARTS (all by default)."""
    console = Console(width=120)
    torch.set_num_threads(threads)
    where = torch.cuda.get_device_name() if device == "cuda" else _processor()
    console.print(f"{where}, {threads} threads, torch {torch.__version__}, Python {platform.python_version()}")
    images = images or (50_000 if device == "cuda" else 1280)
    runs: dict[str, list[_Run]] = {
        "gate": [
            ("Counting, VGG-16", lambda: gate.counting(device, rounds)),
            ("Optimizer step, VGG-16", lambda: gate.optimizer_step(device, rounds)),
        ],
        "training": [
            (f"Training step, VGG-16, batch 128, {precision}", _training(device, precision, max(3, rounds // 3)))
            for precision in ("fp32", "bf16")
        ],
        "convolution": [
            (
                f"Forward and backward, {model}, batch 128, {precision}",
                _convolution(model, precision, max(3, rounds // 3)),
            )
            for model in ("alexnet", "vgg16")
            for precision in ("fp32", "bf16")
        ],
        "epoch": [(f"An epoch of {model}, batch 128", _epoch(device, model, images)) for model in ("alexnet", "vgg16")],
        "at-once": [
            (
                f"An epoch of AlexNet in {epoch.at_once_precision(device)}, a trial",
                lambda: epoch.trials_at_once(device, "alexnet", images),
            )
        ],
        "cohort": [(f"Cohorts of {model}, a trial", _cohorts(device, model)) for model in ("mlp2", "mlp6")],
    }
    for part in parts or PARTS:
        for title, run in runs[part] if part in runs else _of_the_service(part, trials):
            _show(console, title, run())


def _of_the_service(part: str, trials: int) -> list[_Run]:
    from tests.benchmarks import scaling, service  # only here: the rest runs where there is no Ray

    runs: dict[str, list[_Run]] = {
        "service": [("Sweep beside a bare loop", lambda: service.sweep_beside_bare_loop(os.cpu_count() or 1))],
        "scaling": [
            ("Trials an hour, beside as many times one node's", scaling.nodes),
            ("What a trial costs the driver", scaling.driver_cost),
            ("What storing a trial costs the driver", scaling.store_cost),
        ],
        "growth": [("Cost of a trial as the sweep goes on", lambda: service.growth(trials))],
    }
    return runs[part]


def _cohorts(device: str, model: str) -> Callable[[], Mapping[str, Timing]]:
    return lambda: cohort.cohorts(device, model)


def _epoch(device: str, model: str, images: int) -> Callable[[], Mapping[str, Timing]]:
    return lambda: epoch.beside_plain_loop(device, model, images)


def _convolution(model: str, precision: str, rounds: int) -> Callable[[], Mapping[str, Timing]]:
    return lambda: convolution.beside_torch(model, precision, rounds)


def _training(device: str, precision: str, rounds: int) -> Callable[[], Mapping[str, Timing]]:
    return lambda: gate.training_step(device, precision, rounds)


def _show(console: Console, title: str, timings: Mapping[str, Timing]) -> None:
    table = Table("", "ms", "ratio", title=title, title_justify="left")
    for name, timing in timings.items():
        table.add_row(name, f"{1000 * timing.seconds:.3f}", f"{timing.ratio:.3f}")
    console.print(table)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
