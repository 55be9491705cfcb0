"""Several stores into one: the same as if one had held everything."""

import errno
import json
import shutil

import pytest

from tests.tune.conftest import make_row
from tests.tune.stores import GRID, check, ended, epochs_of, fill, names, rot, rows
from tune import compaction
from tune.cli import main
from tune.compaction import add, take_up
from tune.job import network_name, tensorboard_name
from tune.lease import LostLeaseError
from tune.merge import merge_stores
from tune.run_options import RunOptions
from tune.spec import SweepSpec
from tune.store import Store
from tune.sweep import run_sweep

SPEC = SweepSpec(experiment="test", grid=GRID)


def swept(folder, **fields):
    store = Store(str(folder))
    run_sweep(SPEC.replace(fields), store, RunOptions(executor="inline"))
    return store


def merge(sources, out):
    return merge_stores(sources, out, on_rows=lambda rows: None, on_file=lambda: None)


def curves(store):
    table = store.epochs().to_table().sort_by([("trial_id", "ascending"), ("epoch", "ascending")])
    return table.drop_columns(["seconds"]).to_pylist()


def test_two_halves_are_the_whole(tmp_path, capsys):
    whole = swept(tmp_path / "whole")
    for seed in (0, 1):
        swept(tmp_path / f"half{seed}", seed=seed)
    out, halves = tmp_path / "out", [str(tmp_path / f"half{seed}") for seed in (0, 1)]
    assert main(["merge", *halves, "--out", str(out)]) == 0
    count = len(SPEC.trials())
    assert capsys.readouterr().out == f"{count} trials added, 0 there before. Next: gcsr report {out}\n"
    merged = Store(str(out))
    assert rows(merged) == rows(whole)
    assert curves(merged) == curves(whole)
    manifest = merged.read_manifest()
    assert manifest["trials"] == whole.read_manifest()["trials"]
    # It is a sweep's store as any other.
    again = run_sweep(SPEC, merged, RunOptions(executor="inline", resume=True))
    assert (again.total, again.ran) == (count, 0)
    assert main(["merge", *halves, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"0 trials added, {count} there before. Next: gcsr report {out}\n"
    assert merged.read_manifest() == manifest
    assert main(["report", str(out), "--format", "markdown"]) == 0
    assert f"{count} of {count} trials ended" in capsys.readouterr().out


def test_what_is_there_stays_what_failed_does_not_and_the_first_result_counts(tmp_path, capsys):
    out, first, second = (Store(str(tmp_path / name)) for name in ("out", "first", "second"))
    fill(out, [0], lam=1e-3, mode="baseline")
    fill(first, range(3), lam=1e-3, mode="baseline", accuracy=0.8)
    fill(second, range(4), lam=1e-3, mode="baseline", accuracy=0.7)
    for store, seed in ((out, 2), (second, 9)):
        store.write_trial(make_row(seed=seed, lam=1e-3, mode="baseline", status="failed"), [])
    third = Store(str(tmp_path / "third"))
    fill(third, [3], lam=1e-3, mode="baseline", accuracy=0.6)
    fill(third, [1], lam=1e-3, mode="baseline", accuracy=0.7)
    arguments = [str(tmp_path / name) for name in ("first", "second", "third")]
    assert main(["merge", *arguments, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("3 trials added, 6 there before.")
    assert said.err == "gcsr: 6 trials gave another result elsewhere; the first one was kept\n"
    table = out.read_trials().table.sort_by("seed")
    assert table["seed"].to_pylist() == [0, 1, 2, 3]
    assert table["test_accuracy"].to_pylist() == [0.9, 0.8, 0.8, 0.7]
    assert len(out.epochs().to_table()) == 4 * 3


def contents(folder):
    """What is kept of trials beside their rows."""
    kept = [path for name in ("networks", "tensorboard") for path in (folder / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def test_networks_and_tensorboard_runs_come_with_their_trials(tmp_path, capsys):
    options = RunOptions(executor="inline", save_networks=True, tensorboard=True)
    out, halves = tmp_path / "out", [tmp_path / f"half{seed}" for seed in (0, 1)]
    for seed, half in enumerate(halves):
        run_sweep(SPEC.replace({"seed": seed, "epochs": 2, "mode": "baseline"}), Store(str(half)), options)
    kept = contents(halves[0]) | contents(halves[1])
    assert len(kept) == 2 * len(rows(Store(str(halves[0])))) * 2
    stale = next(name for name in kept if name.startswith("networks"))
    Store(str(out)).write_bytes(stale, b"of a run that was killed before it wrote the row")
    arguments = ["merge", *map(str, halves), "--out", str(out)]
    assert main(arguments) == 0
    assert f"; {len(kept)} files (networks, TensorBoard runs) copied. Next: " in capsys.readouterr().out
    assert contents(out) == kept
    assert main(arguments) == 0
    assert "copied" not in capsys.readouterr().out
    for folder in ("networks", "tensorboard"):
        shutil.rmtree(out / folder)
    assert main(arguments) == 0
    assert contents(out) == kept


def test_another_results_network_stays_where_it_is(tmp_path):
    source, out = Store(str(tmp_path / "source")), Store(str(tmp_path / "out"))
    (row,) = fill(source, [0], accuracy=0.8)
    fill(out, [0], accuracy=0.7)
    source.write_bytes(network_name(row), b"weights")
    source.write_bytes("networks/somebody's.txt", b"notes")
    assert merge([source], out).files == 0
    assert out.entries("networks") == set()
    fill(source, [0], accuracy=0.7)
    assert merge([source], out).files == 1
    assert out.read_bytes(network_name(row)) == b"weights"


def test_a_run_of_which_a_killed_merge_made_only_the_folder_comes_with_the_next(tmp_path):
    source, out = Store(str(tmp_path / "source")), Store(str(tmp_path / "out"))
    (row,) = fill(source, [0])
    fill(out, [0])
    name = tensorboard_name(row)
    source.write_bytes(name, b"curves")
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    assert merge([source], out).files == 1
    assert out.read_bytes(name) == b"curves"


def test_a_trial_never_comes_before_its_network(tmp_path, monkeypatch):
    source, out = Store(str(tmp_path / "source")), Store(str(tmp_path / "out"))
    for row in fill(source, range(3)):
        source.write_bytes(network_name(row), b"weights")
    real = Store.write_bytes
    written = []

    def killed(store, name, data):
        if name.startswith("networks"):
            if len(written) == 1:
                raise KeyboardInterrupt
            written.append(name)
        real(store, name, data)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            merge([source], out)
    assert not ended(out)
    assert merge([source], out).files == 3


def test_epochs_of_a_run_that_was_killed_before_it_wrote_their_row_are_there_once(tmp_path, monkeypatch):
    source, out = Store(str(tmp_path / "source")), Store(str(tmp_path / "out"))
    there, new = fill(out, [7]), fill(source, range(3))
    real = Store.write_bytes

    def killed(store, name, data):
        if name.startswith("trials"):
            raise KeyboardInterrupt
        real(store, name, data)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            fill(out, [1])
    merge([source], out)
    check(out, [*there, *new])


@pytest.mark.parametrize("folder", ["epochs", "trials"])
@pytest.mark.parametrize("step", ["write_merged", "move"])
def test_killed_at_any_point_it_adds_all_or_nothing(folder, step, tmp_path, monkeypatch):
    source, out = Store(str(tmp_path / "source")), Store(str(tmp_path / "out"))
    there, new = fill(out, [7]), fill(source, range(5))
    failed = make_row(seed=3, status="failed")
    out.write_trial(failed, [])
    real = getattr(Store, step)

    def killed(store, name, *rest):
        if name.startswith((folder, f"compacting/{folder}")) and store is out:
            raise KeyboardInterrupt
        return real(store, name, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Store, step, killed)
        with pytest.raises(KeyboardInterrupt):
            merge([source], out)
    alone = {there[0]["trial_id"]}
    seen = ended(out) | {failed["trial_id"]}  # that one's own file is looked at first
    assert seen in (alone | {failed["trial_id"]}, alone.union(row["trial_id"] for row in new))
    fill(source, [5])
    merge([source], out)
    check(out, [*there, *new, make_row(seed=5)])
    assert not names(out, "compacting")


def test_rows_that_rotted_before_they_were_added_leave_no_epochs(tmp_path, monkeypatch):
    source, out = Store(str(tmp_path / "source")), Store(str(tmp_path / "out"))
    there, new = fill(out, [7]), fill(source, range(3))

    def killed(store, name, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Store, "move", killed)
        with pytest.raises(KeyboardInterrupt):
            merge([source], out)
    (part,) = (tmp_path / "out" / "compacting").glob("trials-*")
    rot(part)
    merge([source], out)
    check(out, [*there, *new])


@pytest.mark.parametrize("epochs", [0, 3])
def test_nothing_is_added_to_a_store_that_another_run_has_taken_over(epochs, tmp_path, monkeypatch, capsys):
    source, out = Store(str(tmp_path / "source")), Store(str(tmp_path / "out"))
    row = make_row(seed=1)
    source.write_trial(row, epochs_of(row)[:epochs])
    there = fill(out, [7])

    def lost(store):
        raise LostLeaseError("out: was taken over")

    monkeypatch.setattr(Store, "check_held", lost)
    assert main(["merge", source.location, "--out", out.location]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gcsr: out: was taken over; the same command goes on: ")
    check(out, there)
    assert not names(out, "epochs")[1:]


def test_its_files_are_as_large_as_merges_would_make_them(tmp_path, monkeypatch):
    monkeypatch.setattr(compaction, "SINGLES", 2)
    monkeypatch.setattr(compaction, "_FAN_IN", 3)
    for count, level in ((1, 0), (2, 0), (5, 0), (6, 1), (17, 1), (18, 2)):
        source, out = Store(str(tmp_path / f"source{count}")), Store(str(tmp_path / f"out{count}"))
        fill(source, range(count))
        add(out, source.read_trials().table, [source.epochs().to_table()])
        (name,) = names(out)
        assert name.startswith(f"part-{level}-"), count
        assert len(take_up(out)) == count


@pytest.mark.parametrize("into", ["new", "known"])
def test_other_data_is_refused_before_anything_is_written(into, tmp_path, capsys):
    for name, digest in (("a", 64 * "a"), ("b", 64 * "b")):
        store = Store(str(tmp_path / name))
        fill(store, [0])
        store.write_manifest({"experiment": name, "data": {"cifar10": digest}})
    out = tmp_path / ("new" if into == "new" else "a")
    sources = ["a", "b"] if into == "new" else ["b"]
    assert main(["merge", *(str(tmp_path / name) for name in sources), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gcsr: data: cifar10 with the sha256 bbbbbbbbbbbb…, which trials in ")
    assert "expected aaaaaaaaaaaa…, as in " in line
    assert not (tmp_path / "new").exists()
    assert len(Store(str(tmp_path / "a")).read_trials().table) == 1


def test_versions_of_a_module_are_all_noted(tmp_path):
    for name, versions in (("a", ["1", "2"]), ("b", ["2", "3"]), ("c", [])):
        store = Store(str(tmp_path / name))
        fill(store, [0])
        store.write_manifest({"experiment": name, "networks": {"nets:small": versions}} if versions else {})
    out = Store(str(tmp_path / "out"))
    merge([Store(str(tmp_path / name)) for name in "cab"], out)
    assert out.read_manifest()["networks"] == {"nets:small": ["1", "2", "3"]}


def test_the_last_run_says_what_the_store_is(tmp_path):
    for name, started in (("a", "2026-01-01"), ("b", "2026-03-01"), ("c", "2026-02-01")):
        store = Store(str(tmp_path / name))
        fill(store, [0])
        store.write_manifest({"experiment": name, "spec": {"experiment": name}, "runs": [{"started": started}]})
    out = Store(str(tmp_path / "out"))
    merge([Store(str(tmp_path / name)) for name in "abc"], out)
    manifest = out.read_manifest()
    assert manifest["experiment"] == manifest["spec"]["experiment"] == "b"
    assert [run["started"] for run in manifest["runs"]] == ["2026-01-01", "2026-02-01", "2026-03-01"]


def test_what_cannot_be_merged_is_one_clear_line(tmp_path, capsys):
    fill(Store(str(tmp_path / "good")), [0])
    (row,) = fill(Store(str(tmp_path / "damaged")), [1])
    (tmp_path / "damaged" / "trials" / f"{row['trial_id']}.parquet").write_bytes(b"PAR1")
    (tmp_path / "foreign" / "trials").mkdir(parents=True)
    compaction.pa.parquet.write_table(compaction.pa.table({"x": [1]}), tmp_path / "foreign" / "trials" / "x.parquet")

    def refused(sources, out):
        assert main(["merge", *(str(tmp_path / name) for name in sources), "--out", str(tmp_path / out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "holds no sweep" in refused(["good", "nowhere"], "new")
    assert "expected other stores than --out" in refused(["good"], "good")
    line = refused(["good", "damaged"], "new")
    assert f"{row['trial_id']}.parquet is damaged" in line
    assert line.endswith("; the command that filled the store runs it again, with --resume")
    assert "holds files of something else" in refused(["good"], "foreign")
    assert not (tmp_path / "new").exists()


def test_a_damaged_manifest_of_the_store_that_is_added_to_is_put_aside(tmp_path):
    source, out = Store(str(tmp_path / "source")), Store(str(tmp_path / "out"))
    rows = [*fill(out, [0]), *fill(source, [1])]
    source.write_manifest({"experiment": "known"})
    out.write_bytes("sweep.json", b"{")
    assert main(["merge", source.location, "--out", out.location]) == 0
    check(out, rows)
    assert out.read_manifest()["experiment"] == "known"
    assert out.read_bytes("damaged/sweep.json") == b"{"


def test_a_file_is_no_store_to_add_to(tmp_path, capsys):
    fill(Store(str(tmp_path / "source")), [0])
    (tmp_path / "file").touch()
    assert main(["merge", str(tmp_path / "source"), "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err == f"gcsr: out: '{tmp_path}/file' cannot be written: File exists\n"


def test_a_store_that_may_not_be_read_is_bad_input(tmp_path, monkeypatch, capsys):
    fill(Store(str(tmp_path / "source")), [0])

    def refused(store):
        raise PermissionError(errno.EACCES, "Cannot list directory 'x'. Detail: Permission denied")

    monkeypatch.setattr(Store, "read_trials", refused)
    assert main(["merge", str(tmp_path / "source"), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"gcsr: dir: '{tmp_path}/source' cannot be read: [Errno 13] Cannot list")


def test_damaged_epochs_end_it_and_no_trial_of_theirs_is_added(tmp_path, capsys):
    source = Store(str(tmp_path / "source"))
    row, _ = fill(source, [0, 1])
    path = tmp_path / "source" / "epochs" / f"{row['trial_id']}.parquet"
    path.write_bytes(path.read_bytes()[:-8])
    assert main(["merge", str(tmp_path / "source"), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path} is damaged" in line
    out = Store(str(tmp_path / "out"))
    assert not len(out.read_trials().table)
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["trials"] == []
