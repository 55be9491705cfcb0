"""Small sweeps, and what their stores hold."""

from typing import Any

import pyarrow.parquet as pq

from tests.tune.conftest import make_row
from tune.job import SweepJob
from tune.store import Store

GRID = {
    "model": "mlp2",
    "regularizer": ["l1", "l2"],
    "mode": ["none", "baseline", "ours", "ours_orig"],
    "lam": [1e-3, 1e-2],
    "seed": [0, 1],
    "epochs": 3,
    "gamma": 1,
}
_VOLATILE = {"seconds", "finished_at"}  # what an undisturbed run and a disturbed one may differ in


def job(**fields: Any) -> SweepJob:
    """A job of trials that nobody stores."""
    return SweepJob(experiment="test", store="/nowhere", **fields)


def rows(store: Store) -> list[dict]:
    """The rows of ``trials``, of which no file is damaged, without what any two runs differ in."""
    table = store.read_trials()
    assert not table.damaged
    return [{k: v for k, v in row.items() if k not in _VOLATILE} for row in table.table.to_pylist()]


def ended(store: Store) -> set[str]:
    """Ids of the trials that need no run."""
    return {row["trial_id"] for row in store.read_trials().table.to_pylist() if row["status"] != "failed"}


def epochs_of(row):
    return [{"trial_id": row["trial_id"], "epoch": epoch, "pi": 0.5} for epoch in range(3)]


def fill(store, seeds, **fields):
    rows = [make_row(seed=seed, **fields) for seed in seeds]
    for row in rows:
        store.write_trial(row, epochs_of(row))
    return rows


def ids(rows):
    return sorted(row["trial_id"] for row in rows)


def check(store, rows):
    found = store.read_trials()
    assert not found.damaged
    assert found.table["trial_id"].to_pylist() == ids(rows)
    assert len(store.epochs().to_table()) == 3 * len([row for row in rows if row["status"] != "failed"])


def rot(path, column="test_accuracy"):
    """Turn over the last byte of a column's values."""
    group = pq.ParquetFile(path).metadata.row_group(0)
    (chunk,) = [each for k in range(group.num_columns) if (each := group.column(k)).path_in_schema == column]
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    data = bytearray(path.read_bytes())
    data[start + chunk.total_compressed_size - 1] ^= 0xFF
    path.write_bytes(data)


def names(store, folder="trials"):
    return [info.base_name for info in store.files(folder)]
