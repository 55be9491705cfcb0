"""Shared by the tests of tune/: rows of the store that no training had to make, and a real cluster."""

import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import psutil
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


@pytest.fixture
def on_cluster(monkeypatch):
    """Runs a function, given a real cluster whose head has so many CPUs, in a process of its own that is connected."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # the cluster lives on this machine, and for this test …

    def run(function: Callable[[Any], None], cpus: int) -> None:
        arguments = (function, cpus)  # … and Ray reads it once a process
        process = multiprocessing.get_context("spawn").Process(target=_with_cluster, args=arguments)
        process.start()
        process.join(timeout=120)
        assert process.exitcode == 0

    return run


def _with_cluster(function: Callable[[Any], None], cpus: int) -> None:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    function(cluster)
    ray.shutdown()
    cluster.shutdown()


def wait_for_cpus(count: int) -> None:
    """Until the connected cluster has so many CPUs to give."""
    import ray

    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU") != count and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == count


def title(process: psutil.Process) -> str:
    """What a process calls itself, as Ray's workers do after what they run; nothing if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
