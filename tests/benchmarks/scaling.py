"""How the service scales: trials that only wait, on nodes that only count cores; what a trial costs the driver."""

import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as pads

from gcsr import EpochRecord, TrialConfig, TrialResult
from tests.benchmarks.timing import Timing
from tune.job import Outcome
from tune.run_options import RunOptions
from tune.schema import epoch_rows, trial_row
from tune.spec import SweepSpec
from tune.store import Store
from tune.sweep import run_sweep
from tune.trainable import OUTCOME, SweepTrainable, trials_of

__all__ = ["driver_cost", "nodes", "store_cost"]

_CORES = 4  # of a simulated node
_EPOCHS = 300  # rows of curves a trial, as in the paper's recipe
_WAIT = "GCSR_BENCHMARK_WAIT"  # seconds that a trial takes


class WaitingTrainable(SweepTrainable):
    """Everything but the training: the unit comes, time passes, outcomes of real size go back."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._unit = trials_of(new_config)
        return True

    def step(self) -> dict[str, Any]:
        time.sleep(float(os.environ.get(_WAIT, "0")))
        return {OUTCOME: [outcome(config) for config in self._unit], "done": True}


def outcome(config: TrialConfig) -> Outcome:
    """What a trial of 300 epochs sends back."""
    record = EpochRecord(
        epoch=0,
        train_loss=0.1234567,
        test_accuracy=0.98,
        val_accuracy=None,
        pi=0.71,
        imposed_fraction=1.0,
        grad_abs_mean=1e-3,
        weight_abs_mean=1e-2,
        sparsity=0.0,
        lr=0.05,
        lam_effective=config.lam,
        seconds=0.4,
    )
    result = TrialResult(
        status="finished",
        test_accuracy=0.98,
        val_accuracy=None,
        sparsity=0.0,
        pi=0.71,
        imposed_fraction=1.0,
        train_loss=0.1234567,
        grad_abs_mean=1e-3,
        weight_abs_mean=1e-2,
        gamma_used=None,
        parameters=100_000,
        seconds=120.0,
        device="cpu",
        world_size=1,
        epochs=(record,) * _EPOCHS,
    )
    rows = [row | {"epoch": epoch} for epoch, row in enumerate(epoch_rows(config, result))]
    return Outcome(trial_row(config, "scaling", result), rows)


def nodes(wait: float = 4.0, each: int = 10) -> dict[str, Timing]:
    """Trials an hour on 1, 2 and 4 nodes of four cores each: every core gets so many trials of so many seconds."""
    rates = {count: 1 / _cost(count, wait, each * count * _CORES, first=count * _CORES - 1).wall for count in (1, 2, 4)}
    return {
        f"{count} nodes, {count * _CORES} cores: {3600 * rate:,.0f} trials an hour": Timing(
            1 / rate, rate / (count * rates[1])
        )
        for count, rate in rates.items()
    }


def driver_cost(trials: int = 1200) -> dict[str, Timing]:
    """A trial that takes no time: what Tune, Ray and a store on a disk take of the driver, once all workers are up."""
    few, many = (_cost(count, 0.0, trials, first=trials // 2) for count in (1, 4))
    return {
        f"{_CORES} workers: from one trial's end to the next": Timing(few.wall, 1.0),
        f"{_CORES} workers: processor time of the driver": Timing(few.processor, few.processor / few.wall),
        f"{4 * _CORES} workers: from one trial's end to the next": Timing(many.wall, many.wall / few.wall),
        f"{4 * _CORES} workers: processor time of the driver": Timing(many.processor, many.processor / few.wall),
    }


def store_cost(latency: float = 0.03, trials: int = 512) -> dict[str, Timing]:
    """A trial's way into a store on a disk, and into an object store whose every request takes so long."""
    from tune.recorder import Recorder

    spec = SweepSpec(experiment="scaling", grid={"seed": list(range(trials)), "mode": "baseline", "lam": 1e-3})
    outcomes = [outcome(config) for config in spec.trials()]

    def each(location: str) -> float:
        began = time.perf_counter()
        with Recorder(Store(location), set(), []) as recorder:
            for one in outcomes:
                recorder.ended(one)
        return (time.perf_counter() - began) / trials

    with tempfile.TemporaryDirectory() as folder, _object_store(latency) as (location, requests):
        local = each(str(Path(folder) / "out"))
        remote = each(location)
        count = requests() / trials
    return {
        "a trial into a store on a disk, merged": Timing(local, 1.0),
        f"… in S3, {1000 * latency:.0f} ms a request: {count:.1f} requests": Timing(remote, remote / local),
    }


@dataclass(frozen=True, slots=True)
class _Cost:
    """Seconds a trial: on the clock, and of the driver's processor time."""

    wall: float
    processor: float


def _cost(count: int, wait: float, trials: int, *, first: int) -> _Cost:
    """Of a trial on so many nodes, from the end of the `first` on: before that, workers are still starting."""
    import ray
    from ray.cluster_utils import Cluster

    import tune.ray_executor

    os.environ["RAY_AUTH_MODE"] = "disabled"  # it lives on this machine, and for this measurement
    os.environ[_WAIT] = str(wait)
    real, tune.ray_executor.SweepTrainable = tune.ray_executor.SweepTrainable, WaitingTrainable  # type: ignore[misc]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(count):
            cluster.add_node(num_cpus=_CORES)
        grid = {
            "seed": list(range(trials)),
            "mode": "baseline",
            "lam": 1e-3,
            "epochs": 1000,
        }  # too long for a unit of many
        with tempfile.TemporaryDirectory() as folder, _clock() as ticks:
            options = RunOptions(address=cluster.address)
            run_sweep(SweepSpec(experiment="scaling", grid=grid), Store(str(Path(folder) / "out")), options)
            table = pads.dataset(Path(folder) / "out" / "trials").to_table()
        ends = sorted(end.timestamp() for end in table["finished_at"].to_pylist())
        used = np.interp([ends[first], ends[-1]], *zip(*ticks, strict=True))
        timed = len(ends) - 1 - first
        return _Cost((ends[-1] - ends[first]) / timed, float(used[1] - used[0]) / timed)
    finally:
        tune.ray_executor.SweepTrainable = real  # type: ignore[misc]
        ray.shutdown()
        cluster.shutdown()


@contextmanager
def _clock() -> Iterator[list[tuple[float, float]]]:
    """Time and this process's processor time, noted twice a second."""
    ticks, done = [(time.time(), time.process_time())], threading.Event()

    def tick() -> None:
        while not done.wait(0.5):
            ticks.append((time.time(), time.process_time()))

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    yield ticks
    done.set()
    thread.join()
    ticks.append((time.time(), time.process_time()))


@contextmanager
def _object_store(latency: float) -> Iterator[tuple[str, Any]]:
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    backend, counted = DomainDispatcherApplication(create_backend_app), []

    def slow(environ: Any, start_response: Any) -> Any:
        counted.append(environ["REQUEST_METHOD"])
        time.sleep(latency)
        return backend(environ, start_response)

    os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_EC2_METADATA_DISABLED="true")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, slow, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{server.server_port}", region_name="us-east-1")
    client.create_bucket(Bucket="scaling")
    counted.clear()
    query = f"scheme=http&endpoint_override=127.0.0.1:{server.server_port}&region=us-east-1"
    yield f"s3://scaling/out?{query}", lambda: len(counted)
    server.shutdown()
