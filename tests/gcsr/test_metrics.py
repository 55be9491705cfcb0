"""Sparsity, mean |w| and chance, on numbers worked out by hand."""

import pytest
import torch

from gcsr.metrics import is_chance, sparsity, weight_abs_mean


def test_sparsity_counts_exact_zeros_of_all_parameters():
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, -0.0, 1e-42], [1.0, 0.0, 2.0]]))
        model.bias.copy_(torch.tensor([0.0, 1.0]))
    assert sparsity(model).item() == 4 / 8
    assert weight_abs_mean([model.weight]).item() == pytest.approx(0.5)
    assert weight_abs_mean([model.weight, torch.full((2,), -2.5)]).item() == pytest.approx((3 + 5) / 8)


def test_chance_is_the_best_constant_answer_and_its_noise():
    labels = torch.tensor([0] * 60 + [1] * 40)
    assert is_chance(0.6, labels)
    assert is_chance(0.74, labels)  # 3·√(0.6·0.4/100) = 0.147
    assert not is_chance(0.75, labels)
    assert is_chance(1.0, torch.zeros(5, dtype=torch.int64)), "where there is one class nothing is better"
