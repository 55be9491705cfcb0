"""Shared by the tests of tune/: rows of the store that no training had to make."""

from typing import Any

import pyarrow as pa
import pytest

from gcsr import TrialConfig, TrialResult
from tune.schema import TRIALS, failed_row, trial_row


def make_row(accuracy: float | None = 0.9, *, status: str = "finished", sparsity: float = 0.0, **fields: Any) -> dict:
    """One row of ``trials``: a config's fields and a few results."""
    config = TrialConfig(**fields)
    if status == "failed":
        return failed_row(config, "test", "ValueError: on purpose")
    result = TrialResult(
        status=status,  # type: ignore[arg-type]
        test_accuracy=accuracy,
        val_accuracy=None,
        sparsity=sparsity,
        pi=0.6,
        imposed_fraction=1.0,
        train_loss=0.1,
        grad_abs_mean=1e-3,
        weight_abs_mean=1e-2,
        gamma_used=None,
        parameters=100,
        seconds=1.0,
        device="cpu",
        world_size=1,
        epochs=(),
    )
    return trial_row(config, "test", result)


@pytest.fixture
def table():
    """Makes a ``trials`` table from rows."""
    return lambda rows: pa.Table.from_pylist(rows, schema=TRIALS)


@pytest.fixture
def row():
    """`make_row`."""
    return make_row
