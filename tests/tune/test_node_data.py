"""Data behind a URI: fetched once a machine, checked, and fetched again only when it is another."""

import multiprocessing
import pickle
from dataclasses import replace

import pytest

from gcsr import DataError, TrialConfig
from gcsr.arrays import digest, load_arrays
from tests.tune.data_sets import write_data_set
from tune.job import SweepJob
from tune.node_data import UnfitNodeError, local_digest, local_root
from tune.trainable import JOB, OUTCOME, UNIT, SweepTrainable, unit_text
from tune.trial import is_machines_fault


@pytest.fixture
def shared(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GCSR_DATA", raising=False)
    write_data_set(tmp_path / "shared")
    return tmp_path / "shared"


def test_folders_are_their_own_answer(monkeypatch):
    monkeypatch.delenv("GCSR_DATA", raising=False)
    assert local_root(None, "cifar10") is None
    assert local_root("/data", "cifar10") == "/data"
    assert local_root("s3://nowhere/at/all", "digits") == "s3://nowhere/at/all", "digits need no files"


def test_it_is_fetched_once_and_again_when_it_is_another(shared):
    uri = f"file://{shared}"
    root = local_root(uri, "cifar10")
    first = load_arrays("cifar10", root)
    npz = next(path for path in (shared.parent / "cache").rglob("cifar10.npz"))
    written = npz.stat().st_mtime_ns
    assert local_root(uri, "cifar10") == root
    assert npz.stat().st_mtime_ns == written
    other = write_data_set(shared, seed=1)
    assert digest(load_arrays("cifar10", local_root(uri, "cifar10"))) == digest(other) != digest(first)


def test_a_uri_in_the_environment_is_fetched_into_the_cache(shared, monkeypatch):
    monkeypatch.setenv("GCSR_DATA", f"file://{shared}")
    root = local_root(None, "cifar10")
    assert root.startswith(str(shared.parent / "cache"))
    assert local_root(f"file://{shared}", "cifar10") == root


def _fetch(uri):
    return local_root(uri, "cifar10")


def test_processes_of_one_machine_wait_for_the_one_that_fetches(shared):
    uri = f"file://{shared}"
    with multiprocessing.get_context("fork").Pool(4) as pool:
        roots = pool.map(_fetch, [uri] * 8)
    assert len(set(roots)) == 1
    assert load_arrays("cifar10", roots[0])["train_images"].shape == (20, 32, 32, 3)


def test_what_is_damaged_or_missing_is_said_and_leaves_nothing(shared, tmp_path):
    npz = shared / "cifar10.npz"
    npz.write_bytes(npz.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"has the sha256 .*; expected"):
        local_root(f"file://{shared}", "cifar10")
    assert not list((tmp_path / "cache").rglob("cifar10.npz"))
    with pytest.raises(DataError, match=r"must hold cifar100\.npz and cifar100\.npz\.sha256"):
        local_root(f"file://{shared}", "cifar100")
    (shared / "cifar10.npz.sha256").write_text("nonsense")
    with pytest.raises(DataError, match="holds no SHA-256"):
        local_root(f"file://{shared}", "cifar10")


def test_a_digest_is_of_the_content(shared):
    arrays = dict(load_arrays("cifar10", shared))
    assert digest(arrays) == digest({key: value.copy(order="F") for key, value in arrays.items()})
    changed = arrays | {"test_labels": arrays["test_labels"][::-1].copy()}
    assert digest(arrays) != digest(changed)


def test_a_worker_whose_data_is_another_is_no_fault_of_the_trials(shared, tmp_path, monkeypatch):
    monkeypatch.setattr("ray.tune.trainable.trainable.DEFAULT_STORAGE_PATH", str(tmp_path))  # else the home folder
    config = TrialConfig(dataset="cifar10", model="mlp1", epochs=1, batch_size=10)
    job = SweepJob(experiment="test", store=str(tmp_path / "out"), data=str(shared))
    agreed = local_digest(str(shared), "cifar10")
    (tmp_path / "empty").mkdir()

    def outcome(job):
        return SweepTrainable({UNIT: unit_text([config]), JOB: job}).step()[OUTCOME][0].row["error"]

    assert outcome(replace(job, digests={"cifar10": agreed})) is None
    assert "is not in" in outcome(replace(job, data=str(tmp_path / "empty"))), "where nothing was agreed on"
    with pytest.raises(UnfitNodeError, match="has the sha256"):
        outcome(replace(job, digests={"cifar10": "0" * 64}))
    with pytest.raises(UnfitNodeError, match="is not in"):
        outcome(replace(job, data=str(tmp_path / "empty"), digests={"cifar10": agreed}))


def test_nor_is_that_of_one_of_several_workers():
    error = pickle.loads(pickle.dumps(UnfitNodeError("dataset: cifar10 has the sha256 …")))  # on its way to the driver
    assert is_machines_fault(error)
    assert not is_machines_fault(DataError("dataset: cifar10 is not in /data/nccl"))
