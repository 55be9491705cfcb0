"""What a report says of a search, from its rows and its definition."""

import json

from optuna.distributions import FloatDistribution, IntDistribution, distribution_to_json

from tests.tune.conftest import make_row
from tune.search_report import history_figures, importance_table

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
        "ours (γ=auto)": 4,
        "ours (γ=auto), best so far": 4,
    }
    table = importance_table(rows, DEFINITION)
    assert {row[0] for row in table.rows} == {"digits/mlp2/l2/ours"}
