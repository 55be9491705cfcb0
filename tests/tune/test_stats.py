"""Statistics against hand-computed cases, other formulas and their own definition."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from tune.stats import compare, holm, mean, t_half_width

samples = st.lists(st.floats(0, 1), min_size=2, max_size=8)


def test_t_interval_by_hand():
    # mean 2, s = 1, n = 3: t(0.975, 2) = 4.302653, times 1/√3
    assert t_half_width([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    # s = 1/√2, n = 2: t(0.975, 1) = 12.706205, times 1/2
    assert t_half_width([0.0, 1.0]) == pytest.approx(12.706205 / 2, rel=1e-6)


def test_interval_of_one_run_is_unknown_and_of_equal_runs_is_zero():
    assert t_half_width([0.5]) is None
    assert t_half_width([0.5, 0.5, 0.5]) == 0.0


def test_coverage_on_synthetic_data():
    rng = np.random.default_rng(0)
    hits = sum(abs(mean(x) - 1.0) <= t_half_width(x) for x in rng.normal(1.0, 2.0, size=(2000, 3)))
    assert 0.935 < hits / 2000 < 0.965


def test_welch_by_hand():
    a, b = [3.0, 4.0, 5.0], [1.0, 2.0, 6.0]
    va, vb = 1.0 / 3, 7.0 / 3
    t = 1.0 / math.sqrt(va + vb)
    freedom = (va + vb) ** 2 / (va**2 / 2 + vb**2 / 2)
    assert compare(a, b).p_value == pytest.approx(2 * scipy_stats.t.sf(t, freedom), rel=1e-9)
    assert compare(a, b).relative == pytest.approx(1 / 3)


def test_hedges_g_by_hand():
    # pooled s = 1, 4 degrees of freedom: J = Γ(2) / (√2 · Γ(1.5)) = 0.797885
    assert compare([2.0, 3.0, 4.0], [1.0, 2.0, 3.0]).hedges_g == pytest.approx(0.797885, rel=1e-5)
    # of 5 and 2 runs: pooled s² = (4·2.5 + 1·8) / 5 = 3.6, J = Γ(2.5) / (√2.5 · Γ(2)) = 0.840749
    unequal = compare([1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 4.0])
    assert unequal.hedges_g == pytest.approx(0.840749 / math.sqrt(3.6), rel=1e-5)


def test_probability_of_improvement_by_hand():
    assert compare([2.0, 3.0], [1.0, 2.0]).probability_of_improvement == 3.5 / 4  # a tie among four pairs


def test_the_bootstrap_interval_of_the_difference():
    # a mean of [3, 3, 6] drawn anew is 6 once in 27 times, and 3 eight times
    few = compare([3.0, 3.0, 6.0], [1.0, 1.0, 1.0])
    assert (few.low, few.high) == (2, 5)
    alike = compare([0.75] * 3, [0.5] * 3)
    assert (alike.low, alike.high) == (0.25, 0.25)
    for fewer in ([0.75], [0.75, 0.5]):
        one = compare(fewer, [0.5, 0.5, 0.6])
        assert (one.low, one.high) == (None, None)
    rng = np.random.default_rng(0)
    a, b = rng.normal(2.0, 1.0, size=200), rng.normal(1.0, 2.0, size=300)
    half = 1.959964 * math.sqrt(a.var() / 200 + b.var() / 300)  # many means are normal
    many = compare(a, b)
    assert (many.low, many.high) == pytest.approx((a.mean() - b.mean() - half, a.mean() - b.mean() + half), abs=0.02)


@given(samples, samples)
def test_comparison_is_antisymmetric(a, b):
    there, back = compare(a, b), compare(b, a)
    assert there.probability_of_improvement + back.probability_of_improvement == pytest.approx(1)
    assert (there.p_value is None) == (back.p_value is None)
    if there.p_value is not None and math.isfinite(there.p_value):
        assert there.p_value == pytest.approx(back.p_value)


def test_what_cannot_be_tested_is_none():
    assert compare([0.5], [0.4, 0.6]).p_value is None
    assert compare([0.5, 0.5], [0.5, 0.5]).p_value is None


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.04 times 3, 2, 1, made monotone
    assert holm([0.04, None, 0.01, 0.02]) == [pytest.approx(0.04), None, pytest.approx(0.03), pytest.approx(0.04)]
    assert holm([None]) == [None]
    assert holm([]) == []


@pytest.mark.parametrize("bad", [[], [[1.0]], [float("nan")], [float("inf"), 1.0]])
def test_no_sample_is_refused(bad):
    with pytest.raises(ValueError, match="sample"):
        mean(bad)
