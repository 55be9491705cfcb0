"""Searches: what is suggested, that it does not depend on what runs beside or was killed, where it is kept."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
from glob import glob
from pathlib import Path

import optuna
import pytest

from gcsr import InvalidInputError
from gcsr.cohort import train_cohort
from gcsr.trainer import training
from tests.tune.conftest import make_row
from tests.tune.stores import rows
from tune.aggregate import summarize
from tune.cli import main
from tune.job import Outcome
from tune.lines import lines_of
from tune.reporting import Report
from tune.run_options import RunOptions
from tune.search import run_search
from tune.search_report import stored_definition, stored_search
from tune.search_spec import SAMPLERS, Range, SearchSpec
from tune.spec import SweepSpec, load_spec
from tune.store import Store
from tune.study import LineStudy, StudyStorage, should_prune
from tune.sweep import run_sweep

GRID = {
    "model": "mlp3",
    "width": 0.5,
    "regularizer": "l2",
    "mode": ["baseline", "ours_orig"],
    "lam": [1e-4, 0.03],
    "seed": [0, 1],
    "epochs": 8,
}
SPEC = SweepSpec(experiment="test", grid=GRID)
ONE_LINE = SPEC.replace({"mode": "ours_orig"})  # so long that every sampler comes to suggest from results

NOWHERE = "127.0.0.1:1"  # no cluster answers there


def search(
    out, spec=SPEC, *, trials=24, window=3, storage=None, refit=False, cohort="auto", address=None, **search_fields
):
    spec = spec.model_copy(update={"search": spec.search.model_copy(update=search_fields)})
    executor = "inline" if address is None else "ray"
    options = RunOptions(executor=executor, address=address, resume=True, stop_collapsed=True, cohort=cohort)
    return run_search(spec, Store(str(out)), options, trials=trials, window=window, storage=storage, refit=refit)


def forget(out, keep):
    """Leave some trials, and nothing that says what was suggested: only their results can."""
    for path in sorted((Path(out) / "trials").iterdir())[keep:]:
        path.unlink()
    for name in ("study.journal", "suggestions.json"):
        (Path(out) / name).unlink(missing_ok=True)


# -- what is searched ---------------------------------------------------------------------------------------------


def test_lines_of_the_digits_spec():
    spec = load_spec("digits")
    lines = lines_of(spec.spaces(), spec.search)
    assert [line.label.removeprefix("digits/mlp6/") for line in lines] == [
        f"{regularizer}/{mode}" for regularizer in ("l2", "l1") for mode in ("baseline", "ours", "ours_orig")
    ]
    assert [sorted(line.space) for line in lines[:3]] == [["lam"], ["gamma", "lam"], ["lam", "mu"]]
    assert (lines[0].space["lam"].low, lines[3].space["lam"].high, lines[0].space["lam"].log) == (1e-4, 4e-3, True)
    assert {line.fixed["holdout"] for line in lines} == {0.1}, "λ is not chosen on the test images"
    on_test = lines_of(spec.spaces(), SearchSpec(objectives=["test_accuracy"]))
    assert "holdout" not in on_test[0].fixed


@pytest.mark.parametrize(
    ("params", "possible"),
    [
        ({"lam": 1e-4, "gamma": 0}, True),
        ({"lam": 4e-3, "gamma": 20}, True),
        ({"lam": 1.0, "gamma": 0}, False),
        ({"lam": float("nan"), "gamma": 0}, False),
        ({"lam": 1e-4, "gamma": 21}, False),
        ({"lam": 1e-4, "gamma": 0.5}, False),
        ({"lam": 1e-4}, False),
        ({"lam": 1e-4, "mu": 0.5}, False),
    ],
)
def test_a_line_knows_what_a_search_of_it_could_suggest(params, possible):
    spec = load_spec("digits")
    assert lines_of(spec.spaces(), spec.search)[1].contains(params) is possible


def test_named_fields_are_searched_and_fixed_ones_are_not():
    spec = SweepSpec(
        experiment="test",
        grid=GRID | {"mu": 0.6, "mode": ["ours_orig", "ours"], "gamma": "auto"},
        search={"space": {"lr": {"low": 0.01, "high": 0.1, "log": True}, "batch_size": {"low": 32.0, "high": 256.0}}},
    )
    orig, ours = lines_of(spec.spaces(), spec.search)
    assert sorted(orig.space) == ["batch_size", "lam", "lr"]
    assert (orig.fixed["mu"], ours.fixed["gamma"]) == (0.6, "auto")
    (config, _) = orig.configs({"lam": 1e-3, "lr": 0.02, "batch_size": 64})
    assert (config.batch_size, config.lr, config.mu) == (64, 0.02, 0.6)


def test_a_gamma_that_waits_for_pi_is_a_line_beside_the_numbers():
    spec = load_spec("digits-depth", {"model": "mlp6"})
    lines = lines_of(spec.spaces(), spec.search)
    assert [line.label.removeprefix("digits/mlp6/l2/") for line in lines] == [
        "baseline",
        "ours/gamma=5",
        "ours_orig",
        "ours/gamma=auto",
    ]
    several = spec.replace({"gamma": [5, "auto", 20], "gamma_threshold": [0.55, 0.7]})
    _, numbers, _, auto = lines_of(several.spaces(), several.search)
    assert (numbers.space["gamma"].low, numbers.space["gamma"].high) == (5, 20)
    assert sorted(auto.space) == ["gamma_threshold", "lam"]
    ranged = SearchSpec(space={"gamma": {"low": 0.0, "high": 9.0}})
    assert len(lines_of(several.spaces(), ranged)) == 3, "the spec says what γ is to be"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "search: {space: {colour: {low: 0.1, high: 1.0}}}",
            "search.space: 'colour' is not allowed; expected one of lam",
        ),
        ("search: {space: {lam: {low: 1.0, high: 0.1}}}", "search.space.lam: [1.0, 0.1] is not allowed"),
        ("search: {space: {lam: {low: 0.0, high: 0.1, log: true}}}", "search.space.lam: 0.0 is not allowed"),
        ("search: {space: {mu: {low: 0.5, high: 1.5}}}", "mu: 1.5 is not allowed"),
        ("search: {space: {dropout: {low: 0.0, high: 0.5}}}", "dropout: 0.5 is not allowed; expected 0 for mlp6"),
        ("search: {sampler: magic}", "search.sampler: 'magic' is not allowed"),
        ("search: {objectives: [sparsity, sparsity]}", "search.objectives: ['sparsity', 'sparsity'] is not allowed"),
        ("search: {objectives: []}", "search.objectives: [] is not allowed"),
        (
            "search: {objectives: [val_accuracy, sparsity], sampler: cmaes}",
            "search.sampler: 'cmaes' is not allowed; expected one of tpe, gp, random, qmc for two objectives",
        ),
        ("search: 5", "search: 5 is not allowed"),
    ],
)
def test_a_wrong_search_is_one_clear_line(text, words, tmp_path, capsys):
    path = tmp_path / "spec.yaml"
    path.write_text(f"experiment: test\ngrid: {{lam: [1e-3, 1e-2]}}\n{text}\n")
    assert main(["search", str(path), "--out", str(tmp_path / "out"), "--trials", "3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--trials", "3"], "trials: 3 is not allowed; expected at least 4"),
        (["--trials", "0"], "trials"),
        (["--trials", "8", "--set", "lam=0.1"], "lam: [0.1] is not allowed; expected search.space.lam, or two values"),
        (["--trials", "8", "--set", "mode=none"], "mode: none leaves nothing to search"),
        (["--trials", "8", "--objective", "sparsity", "--objective", "sparsity"], "search.objectives: ['sparsity', "),
        (
            ["--trials", "8", "--sampler", "cmaes", "--objective", "val_accuracy", "--objective", "sparsity"],
            "search.sampler: 'cmaes' is not allowed",
        ),
        (
            ["--trials", "8", "--pruner", "median", "--objective", "val_accuracy", "--objective", "sparsity"],
            "search.pruner: 'median' is not allowed; expected none for two objectives",
        ),
        (["--trials", "8", "--storage", "postgresql+psycopg://me:secret@127.0.0.1:1/db"], "storage: "),
        (["--trials", "8", "--storage", "nonsense://x"], "storage: nonsense://x cannot be opened"),
        (["--trials", "8", "--storage", "BINARY"], "binary cannot be opened: "),
        (["--trials", "8", "--storage", "TEXT"], "text cannot be opened: "),
    ],
)
def test_bad_options_are_one_clear_line(options, words, tmp_path, capsys):
    path = tmp_path / "spec.yaml"
    path.write_text(f"experiment: test\ngrid: {GRID}\n")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "text").write_text("hello\n")
    options = [str(tmp_path / option.lower()) if option in ("BINARY", "TEXT") else option for option in options]
    assert main(["search", str(path), "--executor", "inline", "--out", str(tmp_path / "out"), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert "secret" not in line
    assert not (tmp_path / "out").exists()


# -- that it is always the same search ----------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_killed_search_goes_on_as_if_nothing_had_happened(sampler, tmp_path):
    outcome = search(tmp_path / "whole", ONE_LINE, sampler=sampler)
    assert (outcome.total, outcome.ran, len(outcome.best)) == (24, 24, 1)
    expected = rows(Store(str(tmp_path / "whole")))
    assert len({(row["lam"], row["mu"]) for row in expected}) == 12
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    forget(tmp_path / "killed", 9)
    again = search(tmp_path / "killed", ONE_LINE, sampler=sampler, window=None)
    assert again.ran == 15
    assert again.best == outcome.best
    assert rows(Store(str(tmp_path / "killed"))) == expected
    assert search(tmp_path / "killed", ONE_LINE, sampler=sampler).ran == 0


def test_a_failed_trial_is_all_that_is_tried_again(tmp_path, monkeypatch):
    trained = []  # by a sampler whose suggestions depend on every digit of a result

    def failing(config, *rest, **options):
        trained.append(config)
        if len(trained) == 2:  # the second seed of the first setting
            raise RuntimeError("on purpose")
        return training(config, *rest, **options)

    with monkeypatch.context() as patched:
        patched.setattr("tune.trial.training", failing)
        assert search(tmp_path, ONE_LINE, sampler="gp").statuses["failed"] == 1
    suggested = {row["trial_id"] for row in rows(Store(str(tmp_path)))}
    (tmp_path / "study.journal").unlink()  # an object store has none
    (tmp_path / "trials" / f"{trained[-1].trial_id}.parquet").unlink()  # killed before the last was stored
    assert search(tmp_path, ONE_LINE, sampler="gp").ran == 2
    assert {row["trial_id"] for row in rows(Store(str(tmp_path)))} == suggested
    assert search(tmp_path, ONE_LINE, sampler="gp", trials=28).ran == 4
    assert search(tmp_path, ONE_LINE, sampler="gp", trials=28).ran == 0


def test_damaged_suggestions_are_named(tmp_path):
    search(tmp_path, trials=8)
    kept = json.loads((tmp_path / "suggestions.json").read_text())
    for damage in ({"lam": 7.0}, {"mu": 0.5}, {"lam": "much"}, "nothing"):
        damaged = kept | {"lines": [[damage], *kept["lines"][1:]]}
        (tmp_path / "suggestions.json").write_text(json.dumps(damaged))
        with pytest.raises(InvalidInputError, match=r"suggestions\.json is damaged"):
            search(tmp_path, trials=8)
    (tmp_path / "suggestions.json").write_text(json.dumps(damaged | {"driver": "another"}))
    assert search(tmp_path, trials=8).ran == 0, "those of another search say nothing"


@pytest.mark.parametrize(
    "damage", [{"window": 0}, {"window": -3}, {"window": "few"}, {"known": 5}, {"definition": [1]}]
)
def test_a_damaged_identity_is_named(damage, tmp_path):
    search(tmp_path, trials=8)
    path = tmp_path / "search.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(InvalidInputError, match=r"search\.json is damaged: expected driver, definition, window ≥ 1"):
        search(tmp_path, trials=8)


@pytest.mark.parametrize("junk", [b"\xff\xfe{", b"\x00\x00\xfe\xff", b"\x89PNG"])
def test_a_file_that_is_no_text_is_damage(junk, tmp_path):
    search(tmp_path, trials=8)
    (tmp_path / "search.json").write_bytes(junk)
    with pytest.raises(InvalidInputError, match=r"search\.json is damaged: ('utf-8' codec|Expecting value)"):
        search(tmp_path, trials=8)


def test_what_a_search_is_does_not_change(tmp_path):
    search(tmp_path, trials=8)
    with pytest.raises(InvalidInputError, match="holds a search with other sampler"):
        search(tmp_path, trials=8, sampler="random")
    with pytest.raises(InvalidInputError, match="window: 5 is not allowed; expected 3"):
        search(tmp_path, trials=8, window=5)
    assert search(tmp_path, trials=16).ran == 8  # but it may go on


def test_seeds_are_averaged_and_the_best_is_the_best(tmp_path):
    outcome = search(tmp_path, objectives=("test_accuracy",))
    table = Store(str(tmp_path)).read_trials().table.to_pandas()
    means = table.groupby(["mode", "lam", table["mu"].fillna(-1)])["test_accuracy"].mean()
    for best in outcome.best:
        mode = best.label.rpartition("/")[2]
        assert best.values[0] == pytest.approx(means[mode].max())
        assert means[mode].idxmax()[0] == best.params["lam"]


def test_of_two_objectives_the_pareto_front_is_found_and_its_first_end_trained_again(tmp_path):
    outcome = search(tmp_path, ONE_LINE, objectives=("val_accuracy", "sparsity"), sampler="random", refit=True)
    table = Store(str(tmp_path)).read_trials().table.to_pandas()
    means = table[table["holdout"] > 0].groupby(["lam", "mu"])[["val_accuracy", "sparsity"]].mean()
    reached = [tuple(pair) for pair in means.to_numpy()]
    front = [pair for pair in reached if not any(o != pair and o[0] >= pair[0] and o[1] >= pair[1] for o in reached)]
    assert [best.values for best in outcome.best] == [pytest.approx(pair) for pair in sorted(front, reverse=True)]
    assert len(front) > 1, "of one setting nothing would be seen"
    assert set(table[table["holdout"] == 0]["lam"]) == {outcome.best[0].params["lam"]}


def test_earlier_trials_are_not_run_again_and_are_learned_from(tmp_path):
    spec = SPEC.replace({"mode": "baseline"})
    grid = spec.replace({"lam": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 0.03]})
    run_sweep(grid, Store(str(tmp_path)), RunOptions(executor="inline"))
    informed = search(tmp_path, spec, trials=4, window=1, objectives=("test_accuracy",), sampler="gp")
    alone = search(tmp_path / "alone", spec, trials=4, window=1, objectives=("test_accuracy",), sampler="gp")
    assert informed.ran == alone.ran == 4
    assert [best.params for best in informed.best] != [best.params for best in alone.best]


def test_losing_settings_get_no_more_seeds(tmp_path):
    spec = SPEC.replace({"mode": "baseline", "seed": [0, 1, 2], "lam": [1e-4, 0.3]})
    outcome = search(tmp_path / "a", spec, trials=36, pruner="median", sampler="random")
    assert outcome.total == outcome.ran < 36
    report = Report(Store(str(tmp_path / "a")), fallback_title="").render("text")
    assert report.startswith(f"test: {outcome.ran} of at most 36 trials ended\n")
    trials = rows(Store(str(tmp_path / "a")))
    assert {sum(row["lam"] == lam for row in trials) for lam in {row["lam"] for row in trials}} == {1, 3}
    states = [t.state.name for t in studies(tmp_path / "a")[0].trials]
    assert {"COMPLETE", "PRUNED"} == set(states)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    forget(tmp_path / "b", 5)
    search(tmp_path / "b", spec, trials=36, pruner="median", sampler="random")
    assert rows(Store(str(tmp_path / "b"))) == trials


@pytest.mark.parametrize(("high", "said"), [(1e-3, "at most 6 trials, "), (2e-3, "6 trials, ")])
def test_where_there_are_few_settings_there_may_be_fewer_trials(high, said, tmp_path, capsys):
    spec = SPEC.replace({"mode": "ours", "seed": 0, "epochs": 1})
    space = {"lam": Range(low=1e-3, high=high), "gamma": Range(low=0, high=1)}
    outcome = search(tmp_path, spec, trials=6, space=space)
    assert f"\n{said}" in capsys.readouterr().err
    assert outcome.ran == (2 if high == 1e-3 else 6)


def test_a_pruned_setting_is_told_with_the_seeds_that_it_got_though_an_equal_one_goes_on(tmp_path, monkeypatch):
    def ended(unit, job):
        accuracy = random.Random(f"{unit[0].batch_size} {unit[0].seed} 0").random()
        return [[Outcome(make_row(accuracy, **unit[0].to_dict()), [])]]

    def tell(study, index, values):
        told.append((index, values))
        told_as_before(study, index, values)

    told, told_as_before = [], LineStudy.tell
    monkeypatch.setattr("tune.inline_executor.run_unit", ended)
    monkeypatch.setattr(LineStudy, "tell", tell)
    spec = SPEC.replace({"mode": "baseline", "seed": [0, 1, 2, 3, 4]})
    space = {"lam": Range(low=1e-3, high=1e-3), "batch_size": Range(low=32, high=35)}
    fields = {"trials": 100, "pruner": "median", "sampler": "random", "objectives": ("test_accuracy",), "space": space}
    assert search(tmp_path, spec, **fields).ran <= 20, "of four settings, again and again"
    first = told.copy()
    told.clear()
    assert search(tmp_path, spec, **fields).ran == 0
    assert told == first


@pytest.mark.parametrize("spared", [True, False])
def test_the_setting_that_is_trained_again_is_the_best_of_the_report(spared, tmp_path, monkeypatch):
    lams = []  # as they are suggested

    def trained(config):
        if config.lam not in lams:
            lams.append(config.lam)
        accuracy, diverging = [(0.2, 0 if spared else 2), (0.8, 1), (0.9, 2), (0.7, 1)][lams.index(config.lam)]
        if config.seed < diverging:
            return Outcome(make_row(None, status="diverged", **config.to_dict()) | {"sparsity": None}, [])
        return Outcome(make_row(accuracy, **config.to_dict()) | {"val_accuracy": accuracy}, [])

    monkeypatch.setattr("tune.inline_executor.run_unit", lambda unit, job: [list(map(trained, unit))])
    spec = SPEC.replace({"mode": "baseline", "seed": [0, 1, 2]})
    outcome = search(tmp_path, spec, trials=12, refit=True)
    store = Store(str(tmp_path))
    (found,) = summarize(store.read_trials().table, stored_search(store, stored_definition(store))).found
    assert found.best.lam == outcome.best[0].params["lam"] == lams[0 if spared else 1]
    assert found.refit.lam == found.best.lam


def test_optunas_pruners():
    two = {0: 0.9, 1: 0.91}
    assert should_prune("median", [two] * 4, {0: 0.5})
    assert not should_prune("median", [two] * 4, {0: 0.95})
    assert not should_prune("median", [two] * 2, {0: 0.5}), "too little to compare with"
    assert should_prune("wilcoxon", [dict(enumerate((0.9, 0.91, 0.92, 0.93, 0.94)))], dict.fromkeys(range(4), 0.5))
    assert not should_prune("wilcoxon", [two], {})
    # better than its rival in each of its own seeds, of which the first failed
    rival = dict(enumerate((0.95, 0.80, 0.81, 0.82, 0.83, 0.84, 0.85)))
    better = {n: value + 0.001 for n, value in rival.items() if n}
    assert not should_prune("wilcoxon", [rival], better)


def test_the_best_are_trained_again_on_all_images(tmp_path):
    outcome = search(tmp_path, trials=8, refit=True)
    assert outcome.ran == 8 + 4
    again = [row for row in rows(Store(str(tmp_path))) if row["holdout"] == 0]
    assert {(row["mode"], row["lam"]) for row in again} == {
        (best.label.rpartition("/")[2], best.params["lam"]) for best in outcome.best
    }
    (tmp_path / "trials" / f"{again[0]['trial_id']}.parquet").unlink()
    assert search(tmp_path, trials=8, refit=True).ran == 1
    again = search(tmp_path, trials=8, refit=True, address=NOWHERE)
    assert (again.ran, again.total, again.best) == (0, 12, outcome.best)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    started = [line for line in log if line["event"] == "started"]
    assert [(line["trials"], line["ended_before"]) for line in started] == [(12, 0), (12, 11)]


def test_a_search_that_is_complete_starts_nothing(tmp_path):
    outcome = search(tmp_path)
    manifest = tmp_path / "sweep.json"
    noted = json.loads(manifest.read_text())
    manifest.unlink()
    again = search(tmp_path, address=NOWHERE)
    assert (again.ran, again.total, again.best, again.saved_epochs) == (0, 24, outcome.best, outcome.saved_epochs)
    assert json.loads(manifest.read_text())["planned"] == noted["planned"] == 24
    with pytest.raises(InvalidInputError, match=r"address: '127\.0\.0\.1:1' cannot be reached"):
        search(tmp_path, trials=28, address=NOWHERE)


def test_a_refit_that_was_killed_is_stacked_with_those_that_it_was_stacked_with(tmp_path, monkeypatch):
    units = []

    def noted(configs, *rest, **options):
        units.append(configs)
        return train_cohort(configs, *rest, **options)

    monkeypatch.setattr("tune.units.train_cohort", noted)
    search(tmp_path, trials=8, refit=True, cohort=4)
    refit = units[-1]
    assert (len(refit), refit[0].holdout) == (4, 0)
    (tmp_path / "trials" / f"{refit[2].trial_id}.parquet").unlink()
    assert search(tmp_path, trials=8, refit=True, cohort=4).ran == 1
    assert units[-1] == refit


# -- where Optuna keeps it ----------------------------------------------------------------------------------------


def studies(out):
    storage = StudyStorage.journal(Path(out) / "study.journal").storage
    return [optuna.load_study(study_name=s.study_name, storage=storage) for s in storage.get_all_studies()]


def test_the_journal_holds_every_setting_once_and_is_made_anew_if_lost(tmp_path):
    search(tmp_path, objectives=("test_accuracy", "sparsity"))
    expected = [[(t.params, t.values, t.state) for t in study.trials] for study in studies(tmp_path)]
    assert [len(each) for each in expected] == [6, 6]
    assert studies(tmp_path)[0].metric_names == ["test_accuracy", "sparsity"]
    assert studies(tmp_path)[0].best_trials
    journal = tmp_path / "study.journal"
    for damage in (b"", journal.read_bytes()[:-20], b"not a journal\n", b"{}\n", None):
        journal.unlink()
        if damage is not None:
            journal.write_bytes(damage)
        assert search(tmp_path, objectives=("test_accuracy", "sparsity")).ran == 0
        assert [[(t.params, t.values, t.state) for t in study.trials] for study in studies(tmp_path)] == expected


def test_a_journal_of_others_that_a_full_disk_has_cut_off_goes_on(tmp_path):
    storage = tmp_path / "shared.log"
    search(tmp_path / "one", storage=str(storage))
    whole = storage.read_bytes()
    storage.write_bytes(whole + b'{"op_code": 4, "wor')
    search(tmp_path / "two", storage=str(storage))
    assert storage.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in storage.read_bytes().splitlines())


def test_two_drivers_that_share_a_storage_learn_from_each_other(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    search(tmp_path / "one", storage=url)
    search(tmp_path / "two", storage=url)
    storage = StudyStorage(url).storage
    (first, second) = [optuna.load_study(study_name=s.study_name, storage=storage) for s in storage.get_all_studies()]
    assert len(first.trials) == len(second.trials) == 12
    assert len({json.dumps(t.params) for t in first.trials}) > 6, "the second does not repeat the first"
    expected = rows(Store(str(tmp_path / "two")))
    forget(tmp_path / "two", 9)
    search(tmp_path / "two", storage=url)
    assert rows(Store(str(tmp_path / "two"))) == expected
    other = SPEC.replace({"epochs": 9})  # a stranger with another problem does not mix in
    search(tmp_path / "three", other, trials=4, storage=url)
    assert len(storage.get_all_studies()) == 4


def test_a_database_that_fails_ends_the_search_with_the_command_that_goes_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "spec.yaml").write_text(f"experiment: test\ngrid: {GRID}\n")
    arguments = ["search", str(tmp_path / "spec.yaml"), "--out", str(tmp_path / "out"), "--executor", "inline"]
    arguments += ["--trials", "16", "--window", "3", "--storage", f"sqlite:///{tmp_path}/study.db"]
    trained = []

    def failing(config, *rest, **options):
        trained.append(config)
        if len(trained) == 8:
            rename("trials", "gone")
        return training(config, *rest, **options)

    def rename(old, new):
        with contextlib.closing(sqlite3.connect(tmp_path / "study.db", timeout=60)) as database:
            database.execute(f"alter table {old} rename to {new}")

    with monkeypatch.context() as patched:
        patched.setattr("tune.trial.training", failing)
        assert main(arguments) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("gcsr: storage: the database failed: ")
    assert "resume with: gcsr " in line
    rename("gone", "trials")
    assert main([*arguments, "--resume"]) == 0
    search(tmp_path / "whole", trials=16)
    assert rows(Store(str(tmp_path / "out"))) == rows(Store(str(tmp_path / "whole")))


@pytest.fixture
def postgres(tmp_path_factory):
    """The URL of a PostgreSQL server of our own on loopback."""
    found = shutil.which("initdb") or next(iter(glob("/usr/lib/postgresql/*/bin/initdb")), None)
    if found is None:
        pytest.skip("there is no PostgreSQL on this machine")
    programs, data = Path(found).resolve().parent, tmp_path_factory.mktemp("postgres") / "data"
    user = {"user": "nobody"} if os.geteuid() == 0 else {}  # it refuses to run as root
    data.mkdir()
    if user:
        for folder in (data, data.parent):
            shutil.chown(folder, "nobody")
        for folder in data.parent.parents:
            if folder.stat().st_uid == os.geteuid() and folder != Path(tempfile.gettempdir()):
                folder.chmod(folder.stat().st_mode | 0o055)
            else:
                break
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    subprocess.run(
        [programs / "initdb", "-D", data, "-U", "gcsr", "--auth=trust"],
        check=True,
        capture_output=True,
        cwd="/",
        **user,
    )
    server = subprocess.Popen(
        [programs / "postgres", "-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-k", data],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        **user,
    )
    for _ in range(100):
        if (
            subprocess.run(
                [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port)], capture_output=True
            ).returncode
            == 0
        ):
            break
        subprocess.run(["sleep", "0.1"], check=True)
    yield f"postgresql+psycopg://gcsr@127.0.0.1:{port}/postgres"
    server.send_signal(signal.SIGINT)  # SIGTERM would wait for clients
    server.wait(timeout=30)


def test_a_study_in_postgresql(postgres, tmp_path):
    pytest.importorskip("psycopg")
    search(tmp_path / "sql", storage=postgres)
    search(tmp_path / "journal")
    assert rows(Store(str(tmp_path / "sql"))) == rows(Store(str(tmp_path / "journal")))
    storage = StudyStorage(postgres).storage
    kept = [optuna.load_study(study_name=s.study_name, storage=storage) for s in storage.get_all_studies()]
    assert [len(study.trials) for study in kept] == [6, 6]
    forget(tmp_path / "sql", 7)
    assert search(tmp_path / "sql", storage=postgres).ran == 17
    assert [len(study.trials) for study in kept] == [6, 6]
