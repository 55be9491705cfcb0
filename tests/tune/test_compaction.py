"""Few files, whatever happens while they are merged."""

import contextlib
import errno
import io
import threading

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tune.conftest import make_row
from tests.tune.stores import check, ended, epochs_of, fill, ids, names, rot
from tune import compaction
from tune.compaction import compact, recover, take_up
from tune.job import checkpoint_name
from tune.store import Store


def test_rows_and_epochs_are_the_same_in_few_files(tmp_path):
    store = Store(str(tmp_path))
    rows = fill(store, range(20))
    before = store.read_trials().table
    compact(store, singles=20)
    assert [len(names(store, folder)) for folder in ("trials", "epochs")] == [1, 1]
    assert store.read_trials().table.equals(before)
    check(store, rows)
    for folder, count in (("trials", 20), ("epochs", 60)):  # for anybody's tools
        assert duckdb.sql(f"select count(*) from '{tmp_path}/{folder}/*.parquet'").fetchall() == [(count,)]


def test_nothing_is_merged_for_a_few_and_failed_trials_stay_alone(tmp_path):
    store = Store(str(tmp_path))
    rows = fill(store, range(9))
    compact(store, singles=10)
    assert len(names(store)) == 9
    failed = make_row(status="failed", seed=99)
    store.write_trial(failed, [])
    compact(store, singles=9)
    assert len(names(store)) == 2
    assert f"{failed['trial_id']}.parquet" in names(store)
    again = make_row(seed=99)  # it runs again, and ends well
    store.write_trial(again, epochs_of(again))
    check(store, [*rows, again])


def test_many_trials_need_few_files(tmp_path, monkeypatch):
    monkeypatch.setattr(compaction, "_FAN_IN", 3)
    store, rows = Store(str(tmp_path)), []
    for start in range(0, 108, 4):
        rows += fill(store, range(start, start + 4))
        compact(store, singles=4)
    assert len(names(store)) <= 2 * 3
    check(store, rows)


@pytest.mark.parametrize("step", range(1, 60))
def test_killed_at_any_step_it_is_completed_by_the_next_run(tmp_path, monkeypatch, step):
    store = Store(str(tmp_path))
    rows = fill(store, range(6))
    calls = 0

    class KilledError(BaseException):
        pass

    def dying(real):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == step:
                raise KilledError
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        for name in ("write_merged", "remove", "move"):
            patched.setattr(store, name, dying(getattr(store, name)))
        try:
            compact(store, singles=6)
        except KilledError:
            pass
        else:
            assert step > 16, "fewer steps than there are files"
    check(store, rows)  # a report sees everything even now
    visible = duckdb.sql(f"select trial_id from '{tmp_path}/trials/*.parquet'").fetchall() if names(store) else []
    assert len(set(visible)) == len(visible), "other programs never see a trial twice"
    recover(store)
    assert not store.files("compacting")
    check(store, rows)
    compact(store, singles=6)
    check(store, rows)


def test_a_reader_beside_a_merging_writer_misses_nothing(tmp_path):
    store = Store(str(tmp_path))
    rows = fill(store, range(40))
    stop, problems, reads = threading.Event(), [], 0

    def read():
        nonlocal reads
        own = Store(str(tmp_path))
        while not stop.is_set():
            found = own.read_trials()
            reads += 1
            if len(found.table) < 40 or found.damaged:
                problems.append((len(found.table), found.damaged))

    reader = threading.Thread(target=read)
    reader.start()
    for start in range(40, 120, 8):
        rows += fill(store, range(start, start + 8))
        compact(store, singles=8)
    stop.set()
    reader.join()
    assert reads
    assert not problems
    check(store, rows)


def test_a_damaged_file_is_not_merged_and_a_damaged_part_is_put_aside(tmp_path):
    store = Store(str(tmp_path))
    rows = fill(store, range(8))
    bad = tmp_path / "trials" / f"{rows[0]['trial_id']}.parquet"
    bad.write_bytes(b"PAR1 is what it is not")
    compact(store, singles=7)
    assert len(store.read_trials().damaged) == 1
    assert len(ended(store)) == 7
    (part,) = [name for name in names(store) if name.startswith("part-")]
    (tmp_path / "trials" / part).write_bytes(b"")
    recover(store)
    assert not ended(store)  # all of them run again
    put_aside = sorted(path.name for path in (tmp_path / "damaged").iterdir())
    assert put_aside == sorted([f"trials-{part}", f"trials-{bad.name}"])


def test_a_part_whose_values_rot_is_put_aside_and_a_trial_whose_values_rot_runs_again(tmp_path):
    store = Store(str(tmp_path))
    fill(store, range(8))
    compact(store, singles=8)
    alone = fill(store, [8, 9])
    (part,) = [name for name in names(store) if name.startswith("part-")]
    rot(tmp_path / "trials" / part)
    rot(tmp_path / "trials" / f"{alone[0]['trial_id']}.parquet")
    assert len(store.read_trials().damaged) == 2
    recover(store)
    put_aside = sorted(path.name for path in (tmp_path / "damaged").iterdir())
    assert put_aside == sorted([f"trials-{part}", f"trials-{alone[0]['trial_id']}.parquet"])
    assert ended(store) == {alone[1]["trial_id"]}
    rows = fill(store, range(10))
    assert ended(store) == set(ids(rows))
    assert not store.read_trials().damaged
    check(store, rows)  # the epochs of those that ran again are there once


def test_of_merged_epochs_only_those_go_whose_rows_are_lost(tmp_path):
    store = Store(str(tmp_path))
    fill(store, range(8))
    compact(store, singles=8)
    (lost,) = names(store)
    kept = fill(store, range(8, 16))
    compact(store, singles=8)
    (tmp_path / "trials" / lost).write_bytes(b"")
    recover(store)
    check(store, kept)
    check(store, fill(store, range(8)) + kept)


def test_a_trial_whose_epochs_are_damaged_runs_again_and_what_is_no_trial_is_put_aside(tmp_path):
    store = Store(str(tmp_path))
    rows = fill(store, range(3))
    name = f"{rows[0]['trial_id']}.parquet"
    (tmp_path / "epochs" / name).write_bytes(b"")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "trials" / "other.parquet")
    assert len(store.read_trials().damaged) == 1
    recover(store)
    put_aside = sorted(path.name for path in (tmp_path / "damaged").iterdir())
    assert put_aside == sorted(["trials-other.parquet", f"trials-{name}", f"epochs-{name}"])
    assert ended(store) == set(ids(rows[1:]))
    check(store, [*fill(store, [0]), *rows[1:]])


def test_a_trial_both_of_whose_files_are_damaged_runs_again(tmp_path):
    store = Store(str(tmp_path))
    rows = fill(store, range(3))
    name = f"{rows[0]['trial_id']}.parquet"
    for folder in ("trials", "epochs"):
        (tmp_path / folder / name).write_bytes(b"")
    recover(store)
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == [f"epochs-{name}", f"trials-{name}"]
    check(store, rows[1:])


@pytest.mark.parametrize("damage", ["values", "footer"])
def test_a_damaged_merge_is_put_aside_and_replaces_nothing(tmp_path, damage):
    store = Store(str(tmp_path))
    rows = fill(store, range(8))
    singles = [f"{row['trial_id']}.parquet" for row in rows]
    store.write_merged("trials", "part-0-a.parquet", singles, store.read_pieces("trials", singles))
    merged = tmp_path / "compacting" / "trials-part-0-a.parquet"
    if damage == "values":
        rot(merged)
    else:
        merged.write_bytes(merged.read_bytes()[:-9])
    recover(store)
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == ["trials-part-0-a.parquet"]
    assert not store.files("compacting")
    check(store, rows)


class Failing(io.BytesIO):
    """A file on a disk that fails."""

    def read(self, size=-1):
        raise OSError(errno.EIO, "Input/output error")


def test_a_disk_that_fails_is_no_damage(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    rows = fill(store, range(8))
    compact(store, singles=8)
    (part,) = names(store)

    @contextlib.contextmanager
    def reading(path):
        if not path.endswith(part):
            raise FileNotFoundError(path)
        yield pa.PythonFile(Failing((tmp_path / "trials" / part).read_bytes()), "r")

    with monkeypatch.context() as patched:
        patched.setattr(store._files, "reading", reading)
        for work in (recover, Store.read_trials, lambda store: store.read_each("trials", [part])):
            with pytest.raises(OSError, match="Input/output error") as caught:
                work(store)
            assert caught.value.filename.endswith(part)
    assert not (tmp_path / "damaged").exists()
    check(store, rows)


def test_a_merge_that_ends_between_two_listings_is_missed_by_none(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    rows = fill(store, range(8))
    names = [f"{row['trial_id']}.parquet" for row in rows]
    for folder in ("trials", "epochs"):
        store.write_merged(folder, "part-0-a.parquet", names, store.read_pieces(folder, names))
        for name in names:
            store.remove(f"{folder}/{name}")
    listed = store.files

    def files(folder):
        if folder == "compacting":  # the reader has seen the folder itself by now
            for each in ("trials", "epochs"):
                if store.modified(f"compacting/{each}-part-0-a.parquet") is not None:
                    store.move(f"compacting/{each}-part-0-a.parquet", f"{each}/part-0-a.parquet")
        return listed(folder)

    monkeypatch.setattr(store, "files", files)
    assert len(store.read_trials().table) == 8


def test_a_merge_loses_no_trial_whose_epochs_are_damaged(tmp_path):
    store = Store(str(tmp_path))
    rows = fill(store, range(20))
    (tmp_path / "epochs" / f"{rows[3]['trial_id']}.parquet").write_bytes(b"PAR1")
    compact(store, singles=10)
    assert len(names(store)) == 2
    recover(store)
    assert rows[3]["trial_id"] not in ended(store)
    fill(store, [3])
    check(store, rows)


def test_epochs_that_a_killed_merge_left_behind_are_merged_later(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    rows = fill(store, range(20))
    write = compaction._write

    def killed(store, folder, *arguments, **options):
        if folder == "epochs":
            raise KeyboardInterrupt
        write(store, folder, *arguments, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(compaction, "_write", killed)
        compact(store, singles=20)
    assert [len(names(store, folder)) for folder in ("trials", "epochs")] == [1, 20]
    late = make_row(seed=20)
    store.write_bytes(f"epochs/{late['trial_id']}.parquet", b"its row is still to come")
    compact(store, singles=20)
    assert [len(names(store, folder)) for folder in ("trials", "epochs")] == [1, 2]
    store.write_trial(late, epochs_of(late))
    check(store, [*rows, late])


def test_what_a_killed_run_would_have_removed_is_removed_by_the_next(tmp_path):
    store = Store(str(tmp_path))
    stored, waiting = fill(store, [0])[0]["trial_id"], make_row(seed=1)["trial_id"]
    for trial_id in (stored, waiting):
        store.write_bytes(checkpoint_name(trial_id), b"state")
    half = tmp_path / "trials" / f".{stored}.parquet.0123456789abcdef.part"
    half.write_bytes(b"PAR1")
    assert take_up(store)["trial_id"].to_pylist() == [stored]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"{waiting}.pt"]
    assert [path.name for path in (tmp_path / "trials").iterdir()] == [f"{stored}.parquet"]
