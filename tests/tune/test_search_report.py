"""What a report says of a search, from its rows and its definition."""

import json

from optuna.distributions import FloatDistribution, IntDistribution, distribution_to_json

from tests.tune.conftest import make_row
from tune.aggregate import summarize
from tune.search_report import history_figures, importance_table, tuned_fields

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
    (compared,) = summarize(table(rows), tuned).comparisons
    assert (compared.baseline.tuned, compared.ours.tuned) == ({"lr": 0.03}, {"lr": 0.04})
    assert summarize(table(rows)).comparisons == ()
