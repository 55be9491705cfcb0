"""What the Ray executor makes of lost workers."""

import contextlib
import itertools
import os
import threading
import time
import types

import psutil
import pytest

import tune.job
import tune.runs
from gcsr import TrialConfig
from tests.tune.conftest import title
from tune.cli import main
from tune.job import Outcome, SweepJob, checkpoint_name
from tune.ray_executor import RayExecutor, _Ending, _Losses, _run_in_rounds, _slots_of
from tune.run_options import RunOptions
from tune.spec import SweepSpec
from tune.store import Store
from tune.sweep import run_sweep
from tune.trainable import JOB, OUTCOME, UNIT, SweepTrainable, unit_text


@pytest.mark.parametrize("skew", [-1000, 1000])
def test_a_unit_is_given_up_after_three_workers_without_progress_whatever_the_clock_of_the_store(tmp_path, skew):
    store, losses = Store(str(tmp_path)), _Losses(SweepJob(experiment="test", store=str(tmp_path), cohort=1))
    unit = [TrialConfig(mode="baseline", lam=1e-3, seed=seed) for seed in range(2)]

    def save(config, seconds):
        name = checkpoint_name(config.trial_id)
        store.write_bytes(name, b"state")
        when = store.modified(name) + skew + seconds
        os.utime(store.path(name), (when, when))

    for seconds in range(4):
        save(unit[seconds % 2], seconds)
        assert losses.again(unit) == [unit]
    assert losses.again(unit) == [unit[:1], unit[1:]]
    assert losses.again(unit[:1]) == []
    assert losses.again(unit[1:]) == [unit[1:]]


@pytest.mark.parametrize(("resources", "device"), [({"CPU": 2.0}, "cpu"), ({"CPU": 2.0, "GPU": 1.0}, "cuda")])
def test_workers_are_told_the_device_that_was_planned(resources, device, tmp_path, monkeypatch):
    monkeypatch.setattr("tune.ray_executor.alive_nodes", lambda: [{"Resources": resources}])
    executor = RayExecutor(SweepJob(experiment="test", store=str(tmp_path)), on_cluster=False)
    assert executor._shared[JOB].device == device


@pytest.mark.parametrize(
    ("nodes", "slots"),
    [([4.0], 4), ([4.0, 40.0], 44), ([0.5], 0), ([], 0)],
    ids=["small", "grown", "too small", "none"],
)
def test_a_cluster_that_has_not_grown_yet_starts_as_many_workers_as_it_holds(nodes, slots):
    job = SweepJob(experiment="test", store="/nowhere")
    assert _slots_of(job, [{"CPU": cpus, "memory": 1.0} for cpus in nodes]) == slots


@pytest.mark.parametrize(
    ("fields", "together"),
    [({"device": "cpu"}, True), ({"device": "cpu", "trials_per_gpu": 2}, False), ({"device": "cuda"}, False)],
)
def test_only_short_trials_in_turn_wait_for_one_another(fields, together, tmp_path, monkeypatch):
    trials = [TrialConfig(mode="baseline", lam=1e-3, seed=seed) for seed in range(3)]
    outcomes = [[Outcome({"trial_id": config.trial_id}, [])] for config in trials]
    monkeypatch.setattr("tune.trainable._run", lambda unit, job: iter(outcomes))
    job = SweepJob(experiment="test", store=str(tmp_path), cohort=1, **fields)
    results = []
    trainable = SweepTrainable({UNIT: unit_text(trials), JOB: job})
    while not results or not results[-1]["done"]:
        results.append(trainable.step())
    assert [len(result[OUTCOME]) for result in results] == ([3] if together else [1, 1, 1])


def test_of_a_unit_that_is_lost_only_the_trial_that_kills_its_worker_is_given_up(tmp_path, monkeypatch):
    trials = [TrialConfig(mode="baseline", lam=1e-3, seed=seed) for seed in range(4)]
    job = SweepJob(experiment="test", store=str(tmp_path), cohort=1)
    rounds, heard = [], []

    def fit(units, ending):
        """Workers die of seed 1, and take what they had not begun with them."""
        rounds.append([[config.seed for config in unit] for unit in units])
        for unit in units:
            for config in itertools.takewhile(lambda config: config.seed != 1, unit):
                ending.ended(Outcome({"trial_id": config.trial_id, "status": "finished"}, []))
        return False

    monkeypatch.setattr("tune.ray_executor.time.sleep", lambda seconds: None)
    listener = types.SimpleNamespace(
        ended=lambda outcome: heard.append((outcome.row["trial_id"], outcome.row["status"]))
    )
    _run_in_rounds([trials], fit, _Ending(listener, job), _Losses(job))
    assert rounds == [[[0, 1, 2, 3]], [[1, 2, 3]], [[1], [2], [3]]]
    assert dict(heard) == {config.trial_id: "failed" if config.seed == 1 else "finished" for config in trials}
    assert len(heard) == 4


@contextlib.contextmanager
def every_worker_killed():
    """Kills this process's Ray workers as soon as they train."""
    done = threading.Event()

    def kill():
        while not done.wait(0.1):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "Trainable.train" in title(process):
                        process.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.slow(30)
def test_a_store_that_is_gone_when_a_search_loses_a_worker_ends_it_with_the_line_that_resumes(
    tmp_path, monkeypatch, capsys
):
    def gone(store, name):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Store, "modified", gone)
    arguments = ["search", "digits", "--trials", "2", "--out", str(tmp_path / "out"), "--cohort", "1"]
    for fixed in ("epochs=3000", "mode=ours_orig", "model=mlp6", "regularizer=l2", "seed=0"):
        arguments += ["--set", fixed]
    with every_worker_killed():
        assert main(arguments) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("gcsr: Input/output error; every ended trial is stored; resume with: gcsr")


class Behind:
    """A clock that is a quarter of an hour slow."""

    def __getattr__(self, name):
        return getattr(time, name)

    def time(self):
        return time.time() - 900


@pytest.mark.slow(15)
def test_a_worker_whose_clock_is_ahead_finds_the_deadline_passed_and_nobody_lost(tmp_path, monkeypatch):
    for module in (tune.runs, tune.job):
        monkeypatch.setattr(module, "time", Behind())
    grid = {"model": "mlp1", "width": 0.1, "epochs": 1, "mode": "none", "seed": [0, 1, 2]}
    store = Store(str(tmp_path))
    outcome = run_sweep(SweepSpec(experiment="test", grid=grid), store, RunOptions(time_limit=300.0))
    assert (outcome.ran, outcome.left, outcome.failures) == (0, 3, ())
    assert not len(store.read_trials().table)
    assert "worker_lost" not in (tmp_path / "log.jsonl").read_text()
