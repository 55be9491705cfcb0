"""The report's page of a large store.

``python -m tests.benchmarks.page FOLDER --trials N`` writes the rows of N trials to FOLDER once, runs ``gcsr report
--format html`` on them in a process of its own, and prints its seconds, the peak of its memory and the page's size.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from tests.tune.conftest import make_row
from tune.compaction import add
from tune.schema import TRIALS
from tune.store import Store

MODES, SEEDS, TRIALS_A_FILE = ("baseline", "ours", "ours_orig"), 3, 65_536


def write(folder: Path, trials: int) -> None:
    """A store's ``trials/`` as compaction leaves it: two networks, three modes, three seeds, λ between 1e-5 and 1."""
    store, random = Store(str(folder)), np.random.default_rng(0)
    number = np.arange(trials)
    setting = number // SEEDS
    lam = np.geomspace(1e-5, 1, setting[-1] // (2 * len(MODES)) + 1)[setting // (2 * len(MODES))]
    collapsed = lam > np.where(setting % 2 == 0, 3e-3, 1e-2)
    columns = {
        "trial_id": [f"{k:016x}" for k in number],
        "model": np.array(["mlp2", "mlp6"])[setting % 2],
        "regularizer": ["l2"] * trials,
        "mode": np.array(MODES)[setting // 2 % len(MODES)],
        "lam": lam,
        "seed": number % SEEDS,
        "status": np.where(collapsed, "collapsed", "finished"),
        "test_accuracy": np.where(collapsed, 0.1, 0.9) + random.normal(0, 0.01, trials),
        "sparsity": random.random(trials),
    }
    same = make_row(regularizer="l2")
    for low in range(0, trials, TRIALS_A_FILE):
        own = {name: column[low : low + TRIALS_A_FILE] for name, column in columns.items()}
        count = len(own["trial_id"])
        rest = {name: [same[name]] * count for name in TRIALS.names if name not in own}
        add(store, pa.table(own | rest, schema=TRIALS), epochs=[])


def main() -> None:
    """Parse, write, run, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=1_000_000)
    given = parser.parse_args()
    if not given.folder.exists():
        write(given.folder, given.trials)
    page = given.folder.with_suffix(".html")
    began = time.perf_counter()
    command = [sys.executable, "-m", "tune.cli", "report", str(given.folder), "--format", "html", "--out", str(page)]
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    rows = sum(pq.read_metadata(path).num_rows for path in (given.folder / "trials").iterdir())
    table = Table("trials", "seconds", "peak GiB", "page MB", title=f"The page of {given.folder}")
    table.add_row(f"{rows:,}", f"{seconds:.1f}", f"{peak:.2f}", f"{page.stat().st_size / 1e6:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
