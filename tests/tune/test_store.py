"""The store: whole files, idempotent writes, damage named, other tools read it."""

import os

import duckdb
import pyarrow.parquet as pq
import pytest

from gcsr import InvalidInputError
from tune.compaction import take_up
from tune.folder import StoreError
from tune.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "out"))


def test_a_trial_written_twice_counts_once(store, row):
    store.write_trial(row(0.5, seed=1), [])
    store.write_trial(row(0.6, seed=1), [])
    assert store.read_trials().table["test_accuracy"].to_pylist() == [0.6]


def test_failed_trials_are_to_be_run_again(store, row):
    finished, failed = row(0.5, seed=1), row(status="failed", seed=2)
    store.write_trial(finished, [])
    store.write_trial(failed, [])
    assert take_up(store)["trial_id"].to_pylist() == [finished["trial_id"]]


def test_an_older_stores_trials_did_what_is_the_default_now(store, row):
    trials = [row(0.5, dataset="svhn", model=model, seed=seed) for model in ("vgg11", "alexnet") for seed in (0, 1)]
    for trial in trials:
        store.write_trial(trial, [])
    for trial in trials[::2]:
        path = store.path("trials", f"{trial['trial_id']}.parquet")
        pq.write_table(pq.read_table(path).drop_columns(["inputs", "initialization"]), path)
    rows = store.read_trials().table.to_pylist()
    assert sorted((row["model"], row["seed"], row["inputs"], row["initialization"]) for row in rows) == [
        *(("alexnet", seed, "standardized", "torch") for seed in (0, 1)),
        *(("vgg11", seed, "standardized", "vgg") for seed in (0, 1)),
    ]


def test_a_metric_that_an_older_version_did_not_have_is_null_and_a_field_that_it_had_is_missed(store, row):
    trials = [row(0.5, seed=seed) for seed in (0, 1)]
    for trial, column in zip(trials, ("pi", "lam"), strict=True):
        store.write_trial(trial, [])
        path = store.path("trials", f"{trial['trial_id']}.parquet")
        pq.write_table(pq.read_table(path).drop_columns([column]), path)
    found = store.read_trials()
    assert [(each["seed"], each["lam"], each["pi"]) for each in found.table.to_pylist()] == [(0, 0.0, None)]
    (line,) = found.damaged
    assert "is damaged: " in line and trials[1]["trial_id"] in line


def test_duckdb_reads_the_folder_as_it_is(store, row):
    for seed in range(3):
        trial = row(0.5 + seed / 10, seed=seed)
        store.write_trial(trial, [{"trial_id": trial["trial_id"], "epoch": 0, "pi": 0.5}])
    query = f"select avg(test_accuracy), count(*) from '{store.path('trials')}/*.parquet'"
    assert duckdb.sql(query).fetchall() == [(pytest.approx(0.6), 3)]
    assert duckdb.sql(f"select count(*) from '{store.path('epochs')}/*.parquet'").fetchall() == [(3,)]
    assert store.epochs().count_rows() == 3


def test_a_uri_says_the_whole_name(tmp_path):
    assert Store(f"file://{tmp_path}/runs%231").path("trials") == f"{tmp_path}/runs#1/trials"
    assert Store(f"file://{tmp_path}/runs%3F1").path("trials") == f"{tmp_path}/runs?1/trials"
    with pytest.raises(StoreError, match=r"expected %3F in place of \?"):
        Store(f"file://{tmp_path}/runs?1")
    with pytest.raises(StoreError, match="expected %23 in place of #"):
        Store(f"file://{tmp_path}/runs#1")  # pyarrow would take it for runs


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"no parquet at all, but long enough to be one" * 10])
def test_damaged_files_are_named_and_the_rest_is_read(store, row, damage):
    store.write_trial(row(0.5, seed=1), [])
    store.write_bytes("trials/broken.parquet", damage)
    trials = store.read_trials()
    assert len(trials.table) == 1
    assert len(trials.damaged) == 1
    assert "broken.parquet" in trials.damaged[0]


def test_leftovers_of_a_killed_writer_are_passed_over(store, row):
    store.write_trial(row(0.5, seed=1), [])
    store.write_bytes("trials/.x.parquet.123.part", b"half")
    assert store.read_trials().damaged == ()
    assert len(store.read_trials().table) == 1


def test_a_failing_write_leaves_nothing(store, row, monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.write_trial(row(0.5), [])
    assert os.listdir(store.path("trials")) == []


def test_two_sweeps_cannot_write_at_once(store):
    with store.exclusive(), pytest.raises(InvalidInputError, match="in use"), Store(store.location).exclusive():
        pass
    with store.exclusive():
        pass


def test_locations_that_are_none(tmp_path):
    with pytest.raises(StoreError, match="out"):
        Store("nonsense://x/y")
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot be written"), Store(str(tmp_path / "file" / "out")).exclusive():
        pass
