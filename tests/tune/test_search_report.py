"""What a report says of a search, from its rows and its definition."""

import json
import shlex

import pytest
from optuna.distributions import FloatDistribution, IntDistribution, distribution_to_json

from tests.tune.conftest import make_row
from tune.aggregate import summarize
from tune.cli import main
from tune.folder import DamagedStoreError
from tune.report import render
from tune.run_options import RunOptions
from tune.search import run_search
from tune.search_report import history_figures, importance_table, stored_definition, stored_search, tuned_fields
from tune.spec import SweepSpec
from tune.store import SUGGESTIONS, Store
from tune.summary import Searched

LAM = json.loads(distribution_to_json(FloatDistribution(1e-4, 1e-1, log=True)))
GAMMA = json.loads(distribution_to_json(IntDistribution(0, 20)))
FIXED = {"dataset": "digits", "model": "mlp2", "regularizer": "l2", "mode": "ours"}
DEFINITION = {
    "objectives": ["test_accuracy"],
    "lines": [
        {"fixed": FIXED, "seed": [0], "lam": LAM, "gamma": GAMMA},
        {"fixed": FIXED | {"gamma": "auto"}, "seed": [0], "lam": LAM},
    ],
}


def test_gamma_as_a_number_and_as_auto_are_lines_of_their_own():
    rows = [
        make_row(0.7 + lam, model="mlp2", mode="ours", lam=lam, gamma=gamma)
        for lam in (1e-3, 2e-3, 3e-3, 4e-3)
        for gamma in (1, 5, 9, "auto")
    ]
    (figure,) = history_figures(rows, DEFINITION)
    counts = {series.name: len(series.x) for series in figure.series}
    assert counts == {
        "ours": 12,
        "ours, best so far": 12,
        "ours γ=auto": 4,
        "ours γ=auto, best so far": 4,
    }
    table = importance_table(rows, DEFINITION)
    assert {row[0] for row in table.rows} == {"digits/mlp2/l2/ours"}


def test_what_was_not_searched_has_no_part_in_the_importance():
    rows = [make_row(0.7 + g / 100, model="mlp2", mode="ours", lam=g * 1e-3, gamma=g) for g in range(1, 9)]
    beyond = [make_row(0.1, model="mlp2", mode="ours", lam=lam, gamma=5) for lam in (0.5, 1.0)]
    table = importance_table(rows + beyond, DEFINITION)
    assert table == importance_table(rows, DEFINITION) and {row[-1] for row in table.rows} == {"8"}


def test_means_that_differ_by_their_rounding_only_have_no_importance():
    line = {"fixed": FIXED, "seed": [0, 1, 2], "lam": LAM, "gamma": GAMMA}
    rows = [
        make_row(correct / 450, model="mlp2", mode="ours", lam=lam, gamma=gamma, seed=seed)
        for lam, counts in ((1e-3, (435, 435, 440)), (2e-3, (440, 435, 435)), (3e-3, (435, 437, 438)))
        for gamma in (1, 5, 9)
        for seed, correct in enumerate(counts)
    ]
    assert importance_table(rows, DEFINITION | {"lines": [line]}) is None


def test_lines_of_one_method_are_told_apart():
    lines = [{"fixed": FIXED | {"batch_size": size}, "seed": [0], "lam": LAM} for size in (64, 128)]
    rows = [make_row(0.7, model="mlp2", mode="ours", lam=1e-3, batch_size=size) for size in (64, 128)]
    (figure,) = history_figures(rows, DEFINITION | {"lines": lines})
    told = [(series.name, series.variant) for series in figure.series][::2]
    assert told == [("ours, batch_size 64", 0), ("ours, batch_size 128", 1)]


def test_what_a_search_chose_competes_as_lam_does(table):
    lr = json.loads(distribution_to_json(FloatDistribution(0.01, 0.1)))
    lines = [{"fixed": FIXED | {"mode": mode}, "seed": [0, 1], "lam": LAM, "lr": lr} for mode in ("baseline", "ours")]
    tuned = tuned_fields(DEFINITION | {"lines": lines})
    assert tuned == {"lr"}
    rows = [
        make_row(accuracy + seed / 100, model="mlp2", mode=mode, lam=1e-3, lr=lr, seed=seed)
        for mode, lr, accuracy in (("baseline", 0.02, 0.7), ("baseline", 0.03, 0.8), ("ours", 0.04, 0.9))
        for seed in (0, 1)
    ]
    search = Searched(tuned=tuned, objectives=("test_accuracy",), asked={})
    (compared,) = summarize(table(rows), search).comparisons
    assert (compared.baseline.tuned, compared.ours.tuned) == ({"lr": 0.03}, {"lr": 0.04})
    assert summarize(table(rows)).comparisons == ()


@pytest.fixture
def asked(tmp_path):
    """What a search did that suggested these λ, for ``ours`` with two seeds."""
    line = {"fixed": FIXED | {"gamma": 5}, "seed": [0, 1], "lam": LAM}

    def suggest(*lams, **fields):
        store, definition = Store(str(tmp_path)), DEFINITION | {"lines": [line]} | fields
        store.write_json(SUGGESTIONS, {"driver": "any", "lines": [[{"lam": lam} for lam in lams]]})
        return stored_search(store, definition)

    return suggest


def of_seeds(lam, *accuracies, **fields):
    return [make_row(a, model="mlp2", mode="ours", lam=lam, seed=seed, **fields) for seed, a in enumerate(accuracies)]


def test_of_equals_the_report_names_the_one_that_the_search_took(table, asked):
    rows = of_seeds(1e-3, 0.8, 0.9) + of_seeds(2e-3, 0.9, 0.8) + of_seeds(3e-3, 0.7, 0.7)
    summary = summarize(table(rows), asked(3e-3, 2e-3, 1e-3))
    (found,) = summary.found
    assert [s.lam for s in found.ranking] == [2e-3, 1e-3, 3e-3]
    assert (found.equal, found.within, found.since) == (1, 2, 1)
    text = render(summary, "text", title="x", progress="p", width=400)
    assert (
        "mlp2 on digits, L2: the best of 3 settings searched, ours γ=5 at λ = 0.002, has a mean test accuracy of "
        "85.00 ± 63.53 % over 2 seeds; of the other 2, 1 reached the same and all lie within its interval; the one "
        "suggested after it was no better." in text
    )
    same = "the best accuracy, 85.00 ± 63.53 %, is that of mlp2 on digits with ours γ=5, L2 at λ = 0.002."
    assert same in text, "the headline names the same"
    places = [line.split() for line in text.splitlines() if " of 3 " in line and "settings" not in line]
    assert [(cells[-9], cells[-8]) for cells in places] == [("0.002", "1"), ("0.001", "1"), ("0.003", "3")]


def test_of_one_seed_each_there_is_no_interval_to_lie_within(table, asked):
    line = {"fixed": FIXED | {"gamma": 5}, "seed": [0], "lam": LAM}
    summary = summarize(table(of_seeds(1e-3, 0.8) + of_seeds(2e-3, 0.9)), asked(1e-3, 2e-3, lines=[line]))
    (found,) = summary.found
    assert (found.best.lam, found.equal, found.within, found.since) == (2e-3, 0, None, 0)
    text = render(summary, "text", title="x", progress="p", width=400)
    assert "of 90.00 % over 1 seed; it was suggested last of these" in text


def test_a_pruned_setting_is_not_the_best_however_easy_its_seed(table, asked):
    rows = [*of_seeds(1e-3, 0.9, 0.5), *of_seeds(2e-3, 0.8)]
    rows += [make_row(0.4, model="mlp2", lam=1e-3, seed=seed) for seed in (0, 1)]
    search = asked(1e-3, 2e-3)
    summary = summarize(table(rows), search)
    assert [s.lam for found in summary.found for s in found.ranking] == [1e-3]
    assert [compared.ours.lam for compared in summary.comparisons] == [1e-3]
    line = {"fixed": FIXED, "seed": [0, 1], "lam": LAM}
    (figure,) = history_figures(rows, DEFINITION | {"lines": [line]})
    points, best = figure.series
    assert sorted(points.y) == [70.0, 80.0]
    assert set(best.y) - {None} == {70.0}


def test_the_best_so_far_is_none_of_which_a_trial_diverged_at_once():
    def second(lam, **fields):
        return make_row(None, model="mlp2", mode="ours", lam=lam, seed=1, **fields)

    rows = of_seeds(1e-3, 0.7, 0.7) + of_seeds(2e-3, 0.9) + [second(2e-3, status="diverged")]
    rows += [*of_seeds(3e-3, 0.8), second(3e-3, status="failed")]
    line = {"fixed": FIXED | {"gamma": 5}, "seed": [0, 1], "lam": LAM}
    (figure,) = history_figures(rows, DEFINITION | {"lines": [line]})
    points, best = figure.series
    assert sorted(points.y) == [70.0, 80.0, 90.0]
    assert set(best.y) == {70.0, 80.0}


def test_of_two_objectives_the_report_shows_the_front(table, asked):
    rows = [
        row
        for lam, accuracy, sparsity in ((1e-3, 0.9, 0.1), (2e-3, 0.8, 0.5), (3e-3, 0.8, 0.4), (4e-3, 0.7, 0.6))
        for row in of_seeds(lam, accuracy, accuracy, sparsity=sparsity)
    ]
    summary = summarize(table(rows), asked(4e-3, 3e-3, 2e-3, 1e-3, objectives=["test_accuracy", "sparsity"]))
    assert [s.lam for s in summary.found[0].ranking] == [1e-3, 2e-3, 4e-3]
    text = render(summary, "text", title="x", progress="p", width=400)
    assert (
        "the Pareto front of test accuracy and sparsity has 3 of 4 settings of ours, 90.00 ± 0.00 % and 0.100 at "
        "λ = 0.001 (ours γ=5) to 70.00 ± 0.00 % and 0.600 at λ = 0.004 (ours γ=5)." in text
    )


def test_of_equals_by_the_first_objective_no_comparison_names_one_that_is_not_on_the_front(table, asked):
    rows = [row for lam, sparsity in ((1e-3, 0.1), (2e-3, 0.5)) for row in of_seeds(lam, 0.8, 0.8, sparsity=sparsity)]
    rows += [make_row(0.7, model="mlp2", lam=1e-3, seed=seed) for seed in (0, 1)]
    for objectives, best in ((["test_accuracy"], 1e-3), (["test_accuracy", "sparsity"], 2e-3)):
        summary = summarize(table(rows), asked(1e-3, 2e-3, objectives=objectives))
        (found,), (compared,) = summary.found, summary.comparisons
        assert found.best.lam == compared.ours.lam == best


def test_where_all_reached_the_same_no_interval_is_told(table, asked):
    rows = [row for lam in (1e-3, 2e-3, 3e-3) for row in of_seeds(lam, 0.8, 0.9)]
    text = render(summarize(table(rows), asked(1e-3, 2e-3, 3e-3)), "text", title="x", progress="p", width=400)
    assert "over 2 seeds; of the other 2, all reached the same; none of the 2 suggested" in text


def test_suggestions_that_cannot_be_read_are_damage(tmp_path):
    store = Store(str(tmp_path))
    for lines in ([], [[{"lam": "much"}], []], [[5], []]):
        store.write_json(SUGGESTIONS, {"driver": "any", "lines": lines})
        with pytest.raises(DamagedStoreError, match=r"suggestions\.json is damaged"):
            stored_search(store, DEFINITION)


def test_the_report_names_what_the_search_found_and_the_command_that_trains_it(tmp_path, capsys, monkeypatch):
    grid = {
        "model": "mlp2",
        "width": 0.5,
        "regularizer": "l2",
        "mode": ["baseline", "ours"],
        "lam": [1e-4, 0.03],
        "seed": [3, 4],
        "epochs": 2,
        "batch_size": 64,
    }
    store = Store(str(tmp_path / "out"))
    options = RunOptions(executor="inline", stop_collapsed=True)
    spec = SweepSpec(experiment="test", grid=grid)
    outcome = run_search(spec, store, options, trials=20, window=2, storage=None, refit=True)
    assert main(["report", store.location, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)["best_found"]
    assert [(f["ranking"][0]["lam"], f["ranking"][0]["val_accuracy_mean"]) for f in found] == [
        (best.params["lam"], best.values[0]) for best in outcome.best
    ]
    trained = []
    monkeypatch.setattr("tune.train.run_train", lambda run, workers: trained.append(run.config.trial_id))
    for each in found:
        for shown in (*each["ranking"], each["refit"]):
            assert main(shlex.split(shown["command"])[1:]) == 0
            assert trained[-1] == shown["trial_ids"][0]
    for form in ("text", "markdown"):
        assert main(["report", store.location, "--format", form]) == 0
        told = capsys.readouterr().out
        assert all(each["refit"]["command"] in told.splitlines() for each in found), "on one line, to be copied"
    assert stored_definition(store) is not None


def test_what_is_under_way_says_nothing_of_the_best(table, asked):
    rows = [*of_seeds(1e-3, 0.8, 0.9), *of_seeds(2e-3, 0.1, 0.2), *of_seeds(3e-3, 0.95)]
    text = render(summarize(table(rows), asked(2e-3, 1e-3, 3e-3)), "text", title="x", progress="p", width=400)
    assert "the best of 2 settings searched, ours γ=5 at λ = 0.001, has" in text
    assert "; the other one lies outside its interval; it was suggested last of these, so that more trials may" in text
