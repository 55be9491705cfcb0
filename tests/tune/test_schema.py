"""What is no row of a trial."""

import math

import pytest

from tune.schema import check_rows


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        *((name, None, f"^{name} is missing$") for name in ("lam", "seed", "dataset", "width", "lr", "holdout")),
        *((name, None, f"^{name} is None$") for name in ("status", "mode", "regularizer")),
        ("status", "fine", "^status is 'fine'$"),
        ("mode", "yours", "^mode is 'yours'$"),
        ("regularizer", "l3", "^regularizer is 'l3'$"),
        ("lam", math.inf, "^lam is not finite$"),
        *(
            (name, math.nan, f"^{name} is not finite$")
            for name in ("test_accuracy", "val_accuracy", "sparsity", "pi", "imposed_fraction", "seconds")
        ),
    ],
)
def test_one_row_that_says_what_no_trial_can_is_enough(table, row, name, value, words):
    rows = [row(0.5), row(status="failed", seed=1), row(None, status="diverged", seed=2)]
    check_rows(table(rows))
    rows[1] |= {name: value}
    with pytest.raises(ValueError, match=words):
        check_rows(table(rows))
