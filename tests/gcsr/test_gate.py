"""When λ applies, by literal values."""

import math

import pytest
import torch

from gcsr import ConfigError
from gcsr.gate import Gate

TABLE = [
    # mode, epoch, π, imposed (γ = 5, μ = 0.6)
    ("none", 0, 1.0, False),
    ("none", 99, 1.0, False),
    ("baseline", 0, 0.0, True),
    ("baseline", 99, float("nan"), True),
    ("ours", 0, 1.0, False),
    ("ours", 4, 1.0, False),
    ("ours", 5, 0.0, True),
    ("ours", 99, 0.0, True),
    ("ours_orig", 0, 0.61, True),
    ("ours_orig", 99, 0.6, False),
    ("ours_orig", 99, 0.59, False),
    ("ours_orig", 99, float("nan"), False),
]


@pytest.mark.parametrize(("mode", "epoch", "pi", "imposed"), TABLE)
def test_decisions(mode, epoch, pi, imposed):
    gate = Gate(mode=mode, gamma=5, mu=0.6)
    assert gate.decides_by_pi() == (mode == "ours_orig")
    if gate.decides_by_pi():
        decision = gate.imposed_by(torch.tensor(pi, dtype=torch.float64))
        assert decision.dtype == torch.bool
        assert decision.item() is imposed
    else:
        assert gate.imposed_in(epoch) is imposed


def test_gamma_zero_has_no_free_epoch_and_no_gamma_imposes_nothing():
    assert Gate(mode="ours", gamma=0).imposed_in(0)
    assert not Gate(mode="ours", gamma=None).imposed_in(10**6)


@pytest.mark.parametrize(
    ("epoch", "previous", "chosen"),
    [(0, None, None), (1, 0.6, None), (1, 0.601, 1), (7, 0.9, 7), (7, 0.1, None), (7, math.nan, None)],
)
def test_auto_gamma_is_the_first_epoch_after_one_that_passed(epoch, previous, chosen):
    auto = Gate(mode="ours", gamma=None, gamma_threshold=0.6)
    assert auto.with_gamma(epoch, previous).gamma == chosen
    assert Gate(mode="ours", gamma=3).with_gamma(epoch, previous).gamma == 3
    assert Gate(mode="ours_orig", gamma=None).with_gamma(epoch, previous).gamma is None


@pytest.mark.parametrize(
    "bad",
    [
        {"mode": "yours"},
        {"mode": "ours", "gamma": -1},
        {"mode": "ours", "gamma_threshold": -0.1},
        {"mode": "ours_orig", "mu": 1.1},
    ],
)
def test_bad_values_are_named(bad):
    with pytest.raises(ConfigError, match=list(bad)[-1]):
        Gate(**bad)
