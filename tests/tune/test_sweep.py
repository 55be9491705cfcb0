"""Whole sweeps: inline and on a real local Ray, undisturbed, killed and resumed."""

import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from gcsr import load_dataset, load_network
from tests.tune.conftest import title
from tests.tune.data_sets import write_data_set
from tests.tune.stores import GRID, rows
from tune.aggregate import summarize
from tune.cli import main
from tune.job import SweepJob, checkpoint_name
from tune.run_options import RunOptions
from tune.spec import SweepSpec
from tune.store import Store
from tune.sweep import run_sweep

SPEC = SweepSpec(experiment="test", grid=GRID)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    store = Store(str(tmp_path_factory.mktemp("undisturbed") / "out"))
    outcome = run_sweep(SPEC, store, RunOptions(executor="inline"))
    assert outcome.total == outcome.ran == 2 * (1 + 2 * 3 * 2)
    return store


def test_the_summary_agrees_with_duckdb_and_scipy(undisturbed):
    summary = summarize(undisturbed.read_trials().table)
    query = f"""select regularizer, mode, lam, list(test_accuracy order by seed), avg(sparsity)
                from '{undisturbed.path("trials")}/*.parquet' group by all"""
    found = {(reg, mode, lam): (acc, sparse) for reg, mode, lam, acc, sparse in duckdb.sql(query).fetchall()}
    assert len(found) == len(summary.settings)
    for setting in summary.settings:
        accuracies, sparse = found[setting.regularizer, setting.mode, setting.lam]
        assert setting.accuracy_mean == pytest.approx(np.mean(accuracies))
        assert setting.accuracy_ci95 == pytest.approx(stats.sem(accuracies) * stats.t.ppf(0.975, 1))
        assert setting.sparsity_mean == pytest.approx(sparse)
    for compared in summary.comparisons:
        ours = found[compared.regularizer, compared.mode, compared.ours.lam][0]
        base = found[compared.regularizer, "baseline", compared.baseline.lam][0]
        if compared.p_value is not None:
            assert compared.p_value == pytest.approx(stats.ttest_ind(ours, base, equal_var=False).pvalue)


def test_epochs_and_trials_belong_together(undisturbed):
    epochs = undisturbed.epochs().to_table().to_pylist()
    last = {row["trial_id"]: row for row in epochs if row["epoch"] == 2}
    trials = undisturbed.read_trials().table.to_pylist()
    assert len(epochs) == 3 * len(trials)
    assert all(last[row["trial_id"]]["test_accuracy"] == row["test_accuracy"] for row in trials)


def test_resume_from_a_checkpoint_alone_is_not_said_to_begin(tmp_path, capsys):
    store = Store(str(tmp_path / "out"))
    spec = SPEC.replace({"mode": "none", "seed": 0, "epochs": 2})
    store.write_bytes(checkpoint_name(spec.trials()[0].trial_id), b"damaged: the trial starts again")
    run_sweep(spec, store, RunOptions(executor="inline", resume=True))
    assert "starts from the beginning" not in capsys.readouterr().err


def test_resume_says_where_it_goes_on_from_nothing_or_beside_other_trials(tmp_path, capsys):
    def said(seed):
        spec = SPEC.replace({"mode": "none", "seed": seed, "epochs": 1})
        run_sweep(spec, Store(str(tmp_path / "out")), RunOptions(executor="inline", resume=True))
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("gcsr: ")]

    assert said([0, 1]) == [f"gcsr: nothing is stored in {tmp_path / 'out'} yet: the run starts from the beginning"]
    assert said([0, 1]) == []
    stay = "1 trial that this spec does not name; it stays in its report"
    assert said([1]) == [f"gcsr: {tmp_path / 'out'} holds {stay}"]
    assert said([1, 2]) == [f"gcsr: {tmp_path / 'out'} holds {stay}"]
    stay = "3 trials that this spec does not name; they stay in its report"
    assert said([3]) == [f"gcsr: {tmp_path / 'out'} holds {stay}"]


def test_resume_runs_only_what_is_missing(undisturbed, tmp_path):
    store = Store(str(tmp_path / "out"))
    half = SPEC.replace({"seed": [0]})
    assert run_sweep(half, store, RunOptions(executor="inline", resume=True)).ran == 13
    assert run_sweep(SPEC, store, RunOptions(executor="inline", resume=True)).ran == 13
    assert run_sweep(SPEC, store, RunOptions(executor="inline", resume=True)).ran == 0
    assert rows(store) == rows(undisturbed)


def _sweep_process(spec: Path, out: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tune.cli", "sweep", str(spec), "--out", str(out), "--resume", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _stored(out: Path) -> int:
    return len(list(out.glob("trials/*.parquet")))


def _wait_for_trials(out: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if _stored(out) >= count:
            return
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"the sweep did not get to {count} trials: {process.communicate()}")


@pytest.fixture
def spec_file(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(f"experiment: test\ngrid: {GRID}\n")
    return path


@pytest.mark.slow(45)
def test_on_ray_killed_at_two_places_and_resumed_it_ends_in_the_undisturbed_table(spec_file, tmp_path):
    out, undisturbed = tmp_path / "out", Store(str(tmp_path / "undisturbed"))
    options = ("--cohort", "2", "--set", "epochs=40")  # long enough that there is something left to be killed
    run_sweep(SPEC.replace({"epochs": 40}), undisturbed, RunOptions(executor="inline", cohort=2))
    # 1: SIGTERM: exit code 130, and the line that resumes. (SIGINT, and SIGKILL to the driver: test_survival.py)
    driver = _sweep_process(spec_file, out, *options)
    _wait_for_trials(out, 3, driver)
    driver.terminate()
    _, err = driver.communicate(timeout=300)
    assert driver.returncode == 130, err
    assert "--resume" in err
    assert "SIGTERM received" not in err, "that is what Ray says of a crash"
    # 2: SIGKILL to a worker: Tune runs its trials again.
    count = _stored(out)
    driver = _sweep_process(spec_file, out, *options)
    _wait_for_trials(out, count + 2, driver)
    workers = [p for p in psutil.Process(driver.pid).children(recursive=True) if "Trainable" in title(p)]
    for worker in workers[:1]:
        os.kill(worker.pid, signal.SIGKILL)
    _, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    assert workers, "no worker was found to kill"
    assert rows(Store(str(out))) == rows(undisturbed)
    assert not list((out / "checkpoints").glob("*")) if (out / "checkpoints").exists() else True


@pytest.mark.slow(150)
def test_trials_over_two_workers_on_ray_survive_one_of_them_and_fail_once_by_their_own_fault(
    tmp_path, monkeypatch, capsys
):
    # As on a cluster, whose nodes have data of their own: only the workers notice that cifar10 is not there.
    monkeypatch.setattr("tune.sweep.check_machine", lambda *_: None)
    monkeypatch.setattr("tune.manifest._digests", lambda *_: {})
    monkeypatch.setattr("tune.runs.SweepJob", functools.partial(SweepJob, checkpoint_seconds=0.1))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # no --address: Ray is started here
    fields = {"mode": "ours_orig", "regularizer": "l2", "lam": 1e-3, "seed": 0, "epochs": 100}
    spec = SPEC.replace(fields | {"dataset": ["cifar10", "digits"], "workers": 2})
    out = tmp_path / "out"
    killed = []

    def kill_one():
        deadline = time.monotonic() + 300
        while not list(out.glob("checkpoints/*.pt")) and time.monotonic() < deadline:
            time.sleep(0.02)
        workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in title(p)]
        for worker in workers[1:]:
            os.kill(worker.pid, signal.SIGKILL)
            killed.append(worker)

    killer = threading.Thread(target=kill_one)
    killer.start()
    outcome = run_sweep(spec, Store(str(out)), RunOptions(data=str(tmp_path), save_networks=True))
    killer.join()
    assert len(killed) == 1
    assert "Trial" not in capsys.readouterr().out, "Tune speaks to whoever reads our output"
    assert outcome.statuses == {"failed": 1, "finished": 1}
    assert "DataError: dataset: cifar10 is not in" in outcome.failures[0]
    events = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    story = [event["event"] for event in events if event["event"] in ("trial_ended", "worker_lost")]
    assert story == ["trial_ended", "worker_lost", "trial_ended"], "a fault of its own was taken for the machine's"
    row = next(row for row in Store(str(out)).read_trials().table.to_pylist() if row["dataset"] == "digits")

    alone = Store(str(tmp_path / "alone"))
    run_sweep(SPEC.replace(fields), alone, RunOptions(executor="inline"))
    (single,) = alone.read_trials().table.to_pylist()
    assert row["world_size"] == 2
    assert single["world_size"] == 1
    assert row["trial_id"] == single["trial_id"], "how it is computed is not what it is"
    assert row["status"] == "finished"
    (network,), digits = (out / "networks").iterdir(), load_dataset("digits")
    right = load_network(network)(digits.test_images).argmax(1) == digits.test_labels
    assert right.double().mean().item() == row["test_accuracy"]
    assert row["test_accuracy"] == pytest.approx(single["test_accuracy"], abs=0.03)
    assert row["imposed_fraction"] == pytest.approx(single["imposed_fraction"], abs=0.1)


@pytest.mark.parametrize("per_gpu", [1, 2])
def test_cut_into_pieces_by_a_time_limit_it_ends_in_the_undisturbed_table(tmp_path, per_gpu):
    spec = SPEC.replace({"mode": "ours_orig", "regularizer": "l2", "lam": 1e-3, "epochs": 300})
    whole, pieces = Store(str(tmp_path / "whole")), Store(str(tmp_path / "pieces"))
    run_sweep(spec, whole, RunOptions(executor="inline", cohort=1))
    left, calls = 2, 0
    while left:
        limit = 0.2 * 2 ** (calls // 20)  # a piece on a busy machine may be over before it has begun
        options = RunOptions(executor="inline", resume=True, cohort=1, trials_per_gpu=per_gpu, time_limit=limit)
        outcome = run_sweep(spec, pieces, options)
        left, calls = outcome.left, calls + 1
        assert calls < 200
        assert not outcome.failures
    assert calls > 2
    assert rows(pieces) == rows(whole)
    assert not list((tmp_path / "pieces" / "checkpoints").glob("*"))


@pytest.mark.slow(40)
@pytest.mark.parametrize("command", ["sweep", "tolerance", "search"])
def test_trials_of_other_data_do_not_join_a_store(command, tmp_path, capsys):
    for seed, name in enumerate(("first", "second")):
        write_data_set(tmp_path / name, seed=seed)
    fields = ("dataset=cifar10", "model=mlp1", "epochs=1", "mode=baseline", "regularizer=l2", "seed=[0]")
    given = [command, "digits", "--executor", "inline", "--out", str(tmp_path / "out")]
    given += [word for field in (*fields, "lam=[1e-4, 1e-3]") for word in ("--set", field)]
    given += ["--trials", "2"] if command == "search" else []
    assert main([*given, "--data", str(tmp_path / "first")]) == 0
    before = (tmp_path / "out" / "sweep.json").read_bytes()
    more = [word.replace("seed=[0]", "seed=[0, 1]") for word in given] if command != "search" else given
    more = [word.replace("2", "3") if word == "2" else word for word in more]
    assert main([*more, "--resume", "--data", str(tmp_path / "second")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("gcsr: data: cifar10 with the sha256 ") and "is not allowed; expected " in line
    assert (tmp_path / "out" / "sweep.json").read_bytes() == before
    assert main([*more, "--resume", "--data", str(tmp_path / "first")]) == 0


OWN_NETWORK = """
from torch import nn


def net(num_classes):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(num_classes))


def plain(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))
"""


@pytest.mark.slow(25)
def test_a_network_and_data_of_ones_own_from_the_folder_where_the_command_runs(tmp_path, monkeypatch, capsys):
    random = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 90), ("test", 30)):
        labels = random.integers(0, 3, n)  # an image is as bright as its class says
        pixels = random.integers(0, 50, (n, 9, 7, 1)) + 100 * labels.reshape(-1, 1, 1, 1)
        arrays |= {f"{split}_labels": labels, f"{split}_images": pixels.clip(0, 255).astype(np.uint8)}
    np.savez(tmp_path / "bright.npz", **arrays)
    module = tmp_path / "a_network_of_mine.py"
    module.write_text(OWN_NETWORK)

    def gcsr(*words):
        code = "from cluster.entry import run; run()"
        path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}  # as a console script finds modules
        command = [sys.executable, "-c", code, *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    fields = ("dataset=bright.npz", "model=a_network_of_mine:net", "mode=ours", "lam=1e-3", "epochs=8", "batch_size=16")
    sweep = ["sweep", "digits", "--data", ".", "--threads", "1"]
    sweep += [word for field in fields for word in ("--set", field)]
    done = gcsr(*sweep, "--set", "seed=[0, 1]", "--out", "on-ray", "--save-networks")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "on-ray" / "networks").glob("bright.npz-a_network_of_mine.net-*.pt"))) == 4
    train = ["train", "--dataset", "bright.npz", "--data", ".", "--mode", "ours_orig", "--lam", "1e-3", "--epochs", "3"]
    done = gcsr(*train, "--model", "a_network_of_mine:plain", "--workers", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["world_size"] == 2

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    inline = [*sweep, "--executor", "inline", "--out", "inline"]
    assert main([*inline, "--set", "seed=[0, 1]"]) == 0
    assert "was changed" not in capsys.readouterr().err
    assert rows(Store(str(tmp_path / "on-ray"))) == rows(Store(str(tmp_path / "inline")))
    found = summarize(Store(str(tmp_path / "inline")).read_trials().table).settings
    assert {setting.network for setting in found} == {"a_network_of_mine:net on bright.npz"}
    assert all(setting.accuracy_mean > 0.8 for setting in found)

    module.write_text(OWN_NETWORK + "\n# one line more\n")
    assert main([*inline, "--set", "seed=2", "--resume"]) == 0
    assert "the module of a_network_of_mine:net was changed since trials in inline were tr" in capsys.readouterr().err
    known = json.loads((tmp_path / "inline" / "sweep.json").read_text())["networks"]["a_network_of_mine:net"]
    assert len(known) == 2 and known[1] == hashlib.sha256(module.read_bytes()).hexdigest()

    (tmp_path / "another_of_mine.py").write_text(OWN_NETWORK.replace("(1, 4, 3)", "(3, 4, 3)"))
    wrong = [word.replace("a_network_of_mine", "another_of_mine") for word in inline]
    assert main([*wrong[:-1], "never"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "model: the network of another_of_mine:net failed on images of shape [1, 9, 7]" in line
    assert not (tmp_path / "never").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "trials").mkdir()
    theirs = tmp_path / "trials" / "patients.parquet"
    pq.write_table(pa.table({"age": [40]}), theirs)
    for arguments in ([], ["--resume"]):
        assert main(["sweep", "digits", "--executor", "inline", "--out", str(tmp_path), *arguments]) == 2
    assert "holds files of something else; expected a new folder or a sweep's" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["trials", "patients.parquet"]
    assert main(["sweep", "digits", "--executor", "inline", "--out", "/"]) == 2
    assert "out: '/' is not allowed" in capsys.readouterr().err


def test_a_time_limit_on_ray_cuts_a_trial_that_goes_on(tmp_path):
    fields = {"mode": "ours_orig", "regularizer": "l2", "lam": 1e-3, "seed": 0}
    began = time.monotonic()
    run_sweep(SPEC.replace(fields | {"epochs": 1}), Store(str(tmp_path / "first")), RunOptions(cohort=1))
    startup = time.monotonic() - began  # the limit is counted from the command, and Ray's first worker takes seconds
    spec = SPEC.replace(fields | {"epochs": 600})
    whole, pieces = Store(str(tmp_path / "whole")), Store(str(tmp_path / "pieces"))
    run_sweep(spec, whole, RunOptions(executor="inline", cohort=1))
    cut = run_sweep(spec, pieces, RunOptions(cohort=1, time_limit=0.8 * startup))
    events = {event["event"]: event for event in map(json.loads, (tmp_path / "pieces" / "log.jsonl").open())}
    assert events["time_limit"]["left"] == cut.left
    assert (cut.left, cut.ran, cut.failures) == (1, 0, ())
    run_sweep(spec, pieces, RunOptions(executor="inline", resume=True, cohort=1))
    assert rows(pieces) == rows(whole)
    assert not list((tmp_path / "pieces" / "checkpoints").glob("*"))


def test_a_time_limit_ends_with_the_command_that_resumes(tmp_path, capsys):
    arguments = ["sweep", "digits", "--executor", "inline", "--out", str(tmp_path / "o"), "--time-limit", "1s"]
    assert main(arguments) == 130
    assert "the time limit left" in capsys.readouterr().err.splitlines()[-1]
    for wrong in ("9", "0s", "m", "1h 3m", "-1s"):
        assert main([*arguments[:-1], wrong]) == 2
        assert f"time_limit: {wrong!r} is not allowed" in capsys.readouterr().err
