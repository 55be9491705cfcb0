"""Real kills: a search's driver, nodes of a real cluster, its head; a disk that is full or read-only."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.tune.conftest import title
from tests.tune.data_sets import write_data_set
from tests.tune.stores import rows
from tune.cli import main
from tune.store import Store

pytestmark = pytest.mark.slow(60)

SPEC = """
experiment: test
grid: {model: mlp2, regularizer: l2, mode: [baseline, ours_orig], lam: [1e-4, 1e-2], epochs: 24, seed: [0, 1]}
"""
SEARCH = ["--trials", "28", "--window", "3"]
SWEEP = ["--set", f"seed={list(range(12))}", "--cohort", "1"]


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return path


def start(command, spec, out, *options):
    arguments = [sys.executable, "-m", "tune.cli", command, str(spec), "--out", str(out), "--resume", *options]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(out):
    return len(list(Path(out).glob("trials/*.parquet")))


def until(condition, process):
    deadline = time.monotonic() + 300
    while not (met := condition()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert met or condition(), process.communicate()


def wait_for(out, count, process):
    until(lambda: ended(out) >= count, process)


def events(out, name):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == name]


def undisturbed(command, spec, out, *options):
    assert main([command, str(spec), "--out", str(out), "--executor", "inline", *options]) == 0
    return rows(Store(str(out)))


def test_a_search_killed_again_and_again_ends_in_the_undisturbed_table(spec, tmp_path):
    out = tmp_path / "out"
    expected = undisturbed("search", spec, tmp_path / "undisturbed", *SEARCH)
    for number in (signal.SIGKILL, signal.SIGINT):
        before = ended(out)
        driver = start("search", spec, out, *SEARCH)
        wait_for(out, before + 4, driver)
        driver.send_signal(number)
        _, err = driver.communicate(timeout=300)
        if number == signal.SIGINT:
            assert driver.returncode == 130, err
            assert "resume with: gcsr search" in err
    assert main(["search", str(spec), "--out", str(out), "--resume", *SEARCH, "--executor", "inline"]) == 0
    assert rows(Store(str(out))) == expected
    assert len(expected) == 28


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # it lives on this machine, and for this test
    from ray.cluster_utils import Cluster

    clusters = []

    def started(workers, **options):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        clusters.append(cluster)
        return cluster, [cluster.add_node(num_cpus=1, **options) for _ in range(workers)]

    yield started
    for cluster in clusters:
        with contextlib.suppress(Exception):
            cluster.shutdown()


def busy(node):
    """Whether a worker of this node has been given a trial: Ray names a process after what it does."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    titles = map(title, raylet.children(recursive=True))
    return any(each.startswith("ray::") and not each.startswith("ray::IDLE") for each in titles)


def test_a_node_that_dies_and_a_head_that_dies(spec, tmp_path, cluster):
    out = tmp_path / "out"
    long = ["--set", f"seed={list(range(6))}", "--set", "epochs=96", "--cohort", "1"]  # a death is noticed sooner
    expected = undisturbed("sweep", spec, tmp_path / "undisturbed", *long)
    first, nodes = cluster(2)
    driver = start("sweep", spec, out, *long, "--trials-per-gpu", "3", "--address", first.address)
    until(lambda: ended(out) >= 4 and all(busy(node) for node in nodes), driver)
    first.remove_node(nodes[0], allow_graceful=False)
    until(lambda: events(out, "worker_lost"), driver)
    wait_for(out, 10, driver)  # the other goes on, also with what that one had
    first.remove_node(first.head_node, allow_graceful=False)
    _, err = driver.communicate(timeout=300)
    assert driver.returncode == 1, err
    assert "the worker of" in err
    assert "stopped answering; every ended trial is stored" in err
    assert 10 <= ended(out) < len(expected)
    assert main(["sweep", str(spec), "--out", str(out), "--resume", *long, "--executor", "inline"]) == 0
    assert rows(Store(str(out))) == expected


def test_nodes_that_join_with_other_data_or_none_run_no_trial(tmp_path, cluster, monkeypatch):
    monkeypatch.delenv("GCSR_DATA", raising=False)  # of the driver: each node has one of its own
    spec, out = tmp_path / "spec.yaml", tmp_path / "out"
    grid = {"dataset": "cifar10", "model": "mlp2", "mode": "baseline", "lam": 1e-3, "epochs": 250}
    spec.write_text(f"experiment: test\ngrid: {grid | {'seed': list(range(10))}}\n")
    for seed, folder in enumerate(("data", "other")):
        write_data_set(tmp_path / folder, seed)
    expected = undisturbed("sweep", spec, tmp_path / "undisturbed", "--data", str(tmp_path / "data"))
    where = {name: {"GCSR_DATA": str(tmp_path / name)} for name in ("data", "other", "nowhere")}
    first, (fit,) = cluster(1, env_vars=where["data"])
    driver = start("sweep", spec, out, "--address", first.address)
    wait_for(out, 1, driver)
    first.remove_node(fit, allow_graceful=False)
    for name in ("other", "nowhere"):
        first.add_node(num_cpus=1, env_vars=where[name])

    until(lambda: len(events(out, "node_unfit")) >= 2, driver)
    first.add_node(num_cpus=1, env_vars=where["data"])
    _, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    assert rows(Store(str(out))) == expected
    missing, other = sorted(event["problem"] for event in events(out, "node_unfit"))
    assert "cifar10 is not in" in missing
    assert "its cifar10 has the sha256" in other


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting a small disk takes root")
@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_a_disk_that_is_full_and_one_that_is_read_only(spec, tmp_path, executor, capsys):
    disk, out = tmp_path / "disk", tmp_path / "disk" / "out"
    disk.mkdir()
    expected = undisturbed("sweep", spec, tmp_path / "undisturbed", *SWEEP)

    def mount(options):
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True)

    try:
        mount("size=300k")
    except subprocess.CalledProcessError:
        pytest.skip("this machine does not let root mount")
    try:
        driver = start("sweep", spec, out, *SWEEP, "--executor", executor)
        _, err = driver.communicate(timeout=300)
        assert driver.returncode == 1, err
        assert "No space left on device" in err
        assert "resume with: gcsr sweep" in err
        assert "Traceback" not in err
        assert 0 < ended(out) < len(expected)
        assert not Store(str(out)).read_trials().damaged
        mount("remount,ro")
        assert main(["sweep", str(spec), "--out", str(out), "--resume", *SWEEP, "--executor", executor]) == 2
        assert "Read-only file system" in capsys.readouterr().err
        mount("remount,rw,size=10m")
        assert main(["sweep", str(spec), "--out", str(out), "--resume", *SWEEP, "--executor", "inline"]) == 0
        assert rows(Store(str(out))) == expected
    finally:
        subprocess.run(["umount", str(disk)], check=True)
