"""Curves over epochs, from files that others damage and merge."""

import pytest

from tests.tune.conftest import make_row
from tune.aggregate import summarize
from tune.cli import main
from tune.compaction import compact
from tune.curves import chosen_settings, read_curves
from tune.store import Store


@pytest.fixture
def filled(tmp_path):
    """A store of four settings, a trial each, with π = its seed / 10 in every epoch."""
    store = Store(str(tmp_path / "out"))
    for seed in range(4):
        row = make_row(mode="baseline", lam=1e-3 * (1 + seed), seed=seed)
        store.write_trial(row, [{"trial_id": row["trial_id"], "epoch": k, "pi": seed / 10} for k in range(3)])
    return store


def curves_of(store):
    return read_curves(store, summarize(store.read_trials().table).settings)


def pis(found):
    return sorted(curve.pi for curve in found.curves)


WHOLE = [(seed / 10,) * 3 for seed in range(4)]


def test_a_failed_trial_does_not_mark_where_the_baseline_collapses(table, row):
    rows = [row(status="failed", mode="baseline", lam=1e-3, seed=1), row(0.9, mode="baseline", lam=1e-3)]
    rows += [row(0.95, mode="baseline", lam=2e-3), row(0.1, status="collapsed", mode="baseline", lam=3e-3)]
    assert [setting.lam for setting in chosen_settings(summarize(table(rows)))] == [2e-3, 3e-3]


def test_the_best_setting_is_that_of_the_tables(table, row):
    rows = [row(0.90, mode="ours", lam=1e-3, seed=seed) for seed in range(2)]
    rows += [row(0.95, mode="ours", lam=2e-3), row(None, status="diverged", mode="ours", lam=2e-3, seed=1)]
    rows += [row(0.80, mode="baseline", lam=1e-3, seed=seed) for seed in range(2)]
    summary = summarize(table(rows))
    assert [each.ours.lam for each in summary.comparisons] == [1e-3]
    assert [s.lam for s in chosen_settings(summary) if s.mode == "ours"] == [1e-3]


@pytest.mark.parametrize("is_local", [True, False], ids=["DuckDB", "Arrow"])
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_damaged_file_is_named_and_the_others_are_read(filled, is_local, share):
    filled.is_local = is_local
    victim = filled.path("epochs", f"{make_row(mode='baseline', lam=2e-3, seed=1)['trial_id']}.parquet")
    with open(victim, "r+b") as file:
        file.truncate(int(share * file.seek(0, 2)))
    found = curves_of(filled)
    assert pis(found) == [WHOLE[0], *WHOLE[2:]]
    (line,) = found.damaged
    assert line.startswith(f"{victim} is damaged: ")


def test_a_byte_that_changed_inside_a_file_is_found_too(filled):
    victim = filled.epoch_files()[0]
    with open(victim, "r+b") as file:
        file.seek(4)  # the first page's header
        file.write(b"\xff" * 16)
    found = curves_of(filled)
    assert len(found.curves) == 3
    assert [line.split()[0] for line in found.damaged] == [victim]


def test_of_files_that_are_all_damaged_there_are_no_curves(filled):
    for path in filled.epoch_files():
        open(path, "w").close()
    found = curves_of(filled)
    assert found.curves == ()
    assert len(found.damaged) == 4


@pytest.mark.parametrize("is_local", [True, False], ids=["DuckDB", "Arrow"])
def test_files_that_a_merge_takes_away_are_read_where_they_went(filled, monkeypatch, is_local):
    filled.is_local = is_local
    listed = filled.epoch_files

    def epoch_files():
        files = listed()
        compact(filled, singles=4)  # all at once, as soon as the reader has seen the files
        return files

    monkeypatch.setattr(filled, "epoch_files", epoch_files)
    found = curves_of(filled)
    assert pis(found) == WHOLE
    assert found.damaged == ()


def test_a_damaged_merge_is_named_and_what_it_has_not_replaced_is_read(filled):
    name = "compacting/epochs-part-0-a.parquet"
    filled.write_bytes(name, b"PAR1 is what it is not")
    found = curves_of(filled)
    assert pis(found) == WHOLE
    assert [line.split()[0] for line in found.damaged] == [filled.path(name)]


def test_the_page_and_the_figures_are_made_without_a_damaged_file(filled, tmp_path, capsys):
    out, victim = str(tmp_path / "out"), filled.epoch_files()[0]
    with open(victim, "r+b") as file:
        file.truncate(100)
    page, figures = tmp_path / "page.html", tmp_path / "figures"
    assert main(["report", out, "--format", "html", "--out", str(page), "--figures", str(figures)]) == 2
    assert capsys.readouterr().err.count(f"{victim} is damaged") == 1
    assert "Coherence rate π" in page.read_text()
    assert list(figures.glob("pi-*.svg"))
    assert main(["report", out]) == 0  # text draws no curves
