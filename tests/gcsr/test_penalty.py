"""∇Ω against autograd, and the proximal step against its optimality condition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gcsr.penalty import penalty_gradient, soft_threshold_


def test_l2_is_the_gradient_of_the_squared_norm():
    w = torch.randn(5, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(w.square().sum(), w)
    assert torch.equal(penalty_gradient(w.detach(), "l2"), expected)


def test_l1_is_the_sign_and_zero_at_zero():
    assert penalty_gradient(torch.tensor([-2.0, -0.0, 0.0, 1e-42]), "l1").tolist() == [-1.0, 0.0, 0.0, 1.0]


@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=20), st.floats(0, 2, width=32))
def test_the_result_minimizes_the_proximal_objective(values, z):
    before = torch.tensor(values)
    after = before.clone()
    soft_threshold_([after], torch.tensor(z))
    for a, w in zip(before.tolist(), after.tolist(), strict=True):
        if w == 0:  # 0 ∈ w − a + z·∂|w|: |a| ≤ z
            assert abs(a) <= z
        else:
            assert w == pytest.approx(a - z if a > 0 else a + z, rel=1e-6, abs=1e-6)
            assert abs(a) > z


def test_inside_the_threshold_is_exactly_zero_and_nan_stays():
    w = torch.tensor([0.3, -0.3, 0.1, -0.0, float("nan"), float("inf")])
    soft_threshold_([w], torch.tensor(0.3))
    assert w[:4].tolist() == [0.0] * 4
    assert w[4].isnan()
    assert not w[5].isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_threshold_zero_changes_nothing(dtype):
    w = torch.randn(100).to(dtype)
    before = w.clone()
    soft_threshold_([w], torch.tensor(0.0))
    assert torch.equal(w, before)
