"""The group-by behind the curves, beside DuckDB and pandas doing the same on the same files.

``python -m tests.benchmarks.aggregate FOLDER --trials N`` writes N trials of 300 epochs to FOLDER once (about 30 kB a
trial), then runs each engine in a process of its own and prints seconds, their ratio and the peak of its memory.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from tune.curves import epoch_means
from tune.schema import EPOCHS
from tune.store import Store

EPOCHS_A_TRIAL, SEEDS, TRIALS_A_FILE = 300, 3, 4096
ENGINES = ("gcsr", "duckdb", "pandas")


def write(folder: Path, trials: int) -> None:
    """A store's ``epochs/`` as compaction leaves it, and which setting each trial belongs to."""
    (folder / "epochs").mkdir(parents=True)
    random = np.random.default_rng(0)
    ids = np.array([f"{number:016x}" for number in range(trials)])
    values = {name: random.random(TRIALS_A_FILE * EPOCHS_A_TRIAL) for name in EPOCHS.names[2:]}  # random takes long
    for low in range(0, trials, TRIALS_A_FILE):
        own = ids[low : low + TRIALS_A_FILE]
        columns = {name: column[: len(own) * EPOCHS_A_TRIAL] for name, column in values.items()}
        table = {
            "trial_id": np.repeat(own, EPOCHS_A_TRIAL),
            "epoch": np.tile(np.arange(EPOCHS_A_TRIAL), len(own)),
            **columns,
        }
        path = folder / "epochs" / f"part-0-{low:032x}.parquet"
        pq.write_table(pa.table(table, schema=EPOCHS), path, compression="zstd", row_group_size=100_000)
    settings = np.arange(trials) // SEEDS
    pq.write_table(pa.table({"trial_id": ids, "setting": settings}), folder / "owners.parquet")


def run(engine: str, folder: Path) -> int:
    """Group by setting and epoch; returns how many groups there are."""
    files, owners = f"{folder}/epochs/*.parquet", folder / "owners.parquet"
    if engine == "gcsr":
        reader = epoch_means(Store(str(folder)), pq.read_table(owners)).to_arrow_reader(100_000)
        return sum(len(batch) for batch in reader)
    if engine == "duckdb":
        reader = duckdb.sql(
            f"""select setting, epoch, avg(train_loss), avg(grad_abs_mean), avg(weight_abs_mean), avg(pi)
                from '{files}' join '{owners}' using (trial_id) group by setting, epoch order by setting, epoch"""
        ).to_arrow_reader(100_000)
        return sum(len(batch) for batch in reader)
    metrics = ["train_loss", "grad_abs_mean", "weight_abs_mean", "pi"]
    frame = pd.read_parquet(folder / "epochs", columns=["trial_id", "epoch", *metrics])
    frame = frame.merge(pd.read_parquet(owners), on="trial_id")
    return len(frame.groupby(["setting", "epoch"])[metrics].mean())


def main() -> None:
    """Parse, write, run, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--engine", choices=ENGINES)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    given = parser.parse_args()
    if given.engine:
        began = time.perf_counter()
        groups = run(given.engine, given.folder)
        print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, groups)
        return
    if not given.folder.exists():
        write(given.folder, given.trials)
    measured: dict[str, list[list[float]]] = {engine: [] for engine in given.engines}
    for _ in range(2):
        for engine in given.engines:
            command = [sys.executable, "-m", "tests.benchmarks.aggregate", str(given.folder), "--engine", engine]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode == 0:
                measured[engine].append([float(word) for word in result.stdout.split()])
    table = Table("engine", "seconds", "ratio", "peak GiB", "groups", title=f"Group-by over {given.folder}")
    reference = min(seconds for seconds, _, _ in measured["duckdb"])
    for engine, results in measured.items():
        if results:
            seconds, peak, groups = min(results)
            table.add_row(engine, f"{seconds:.2f}", f"{seconds / reference:.2f}", f"{peak:.2f}", f"{groups:.0f}")
        else:
            table.add_row(engine, "killed", "–", "–", "–")
    Console().print(table)


if __name__ == "__main__":
    main()
