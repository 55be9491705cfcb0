"""What Ray costs: a sweep beside a bare Python loop over the same trials on the same cores."""

import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow.dataset as pads
import torch

from gcsr import TrialConfig, load_dataset, train
from tests.benchmarks.timing import Timing
from tune.spec import load_spec

__all__ = ["bare_loop", "growth", "sweep_beside_bare_loop"]


def _train_all(fields: list[dict[str, object]]) -> None:
    torch.set_num_threads(1)
    data = load_dataset("digits")
    for each in fields:
        train(TrialConfig(**each), data)  # type: ignore[arg-type]


def bare_loop(trials: list[TrialConfig], cores: int) -> float:
    """Seconds that so many processes take to train all trials, the start of the processes included."""
    began = time.perf_counter()
    shares = [[config.to_dict() for config in trials[core::cores]] for core in range(cores)]
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        pool.map(_train_all, shares, chunksize=1)
    return time.perf_counter() - began


@dataclass(frozen=True, slots=True)
class _Swept:
    """Seconds of a sweep.

    Attributes:
        whole: command to prompt.
        at_work: from the first trial's start to the last one's end.
        training: of all trials together.
    """

    whole: float
    at_work: float
    training: float


def sweep_beside_bare_loop(cores: int) -> dict[str, Timing]:
    """The digits sweep, command to prompt: means of two runs, around which are those of the loop."""
    trials = load_spec("digits").trials()
    first = bare_loop(trials, cores)
    sweeps = [_digits(cores), _digits(cores)]
    bare = (first + bare_loop(trials, cores)) / 2
    whole = statistics.fmean(sweep.whole for sweep in sweeps)
    at_work = statistics.fmean(sweep.at_work for sweep in sweeps)
    training = statistics.fmean(sweep.training for sweep in sweeps) / cores
    return {
        "bare loop over the digits trials": Timing(bare, 1.0),
        "gcsr sweep digits": Timing(whole, whole / bare),
        f"… of which training, on {cores} cores": Timing(training, training / whole),
        "… from the first trial's start to the last one's end": Timing(at_work, at_work / whole),
        "… and of that training": Timing(training, training / at_work),
    }


def _digits(cores: int) -> _Swept:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        _sweep(["digits", "--max-concurrent", str(cores)], Path(folder) / "out")
        whole = time.perf_counter() - began
        trials = pads.dataset(Path(folder) / "out" / "trials").to_table(["finished_at", "seconds"]).to_pylist()
    ends = [trial["finished_at"].timestamp() for trial in trials]
    starts = [end - trial["seconds"] for end, trial in zip(ends, trials, strict=True)]
    return _Swept(whole, max(ends) - min(starts), sum(trial["seconds"] for trial in trials))


def growth(trials: int) -> dict[str, Timing]:
    """Trivial trials (one epoch of a tiny network): the cost of each quarter of the sweep beside the first's."""
    grid = ["--set", "model=mlp1", "--set", "width=0.05", "--set", "epochs=1", "--set", "batch_size=1347"]
    grid += [
        "--set",
        "mode=baseline",
        "--set",
        "regularizer=l2",
        "--set",
        "lam=0.001",
        "--set",
        f"seed={list(range(trials))}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        _sweep(["digits", *grid], Path(folder) / "out")
        ended = sorted(
            t.timestamp() for t in pads.dataset(Path(folder) / "out" / "trials").to_table()["finished_at"].to_pylist()
        )
    quarter = len(ended) // 4
    spans = [(ended[(k + 1) * quarter - 1] - ended[k * quarter]) / (quarter - 1) for k in range(4)]
    return {
        f"a trivial trial, quarter {k + 1} of {trials}": Timing(span, span / spans[0]) for k, span in enumerate(spans)
    }


def _sweep(arguments: list[str], out: Path) -> None:
    command = [sys.executable, "-m", "tune.cli", "sweep", *arguments, "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
