"""Small sweeps, and what their stores hold."""

from typing import Any

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
