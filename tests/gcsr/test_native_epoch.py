"""Whole epochs in C: the bits of the same epochs step by step, however many threads and networks there are."""

import itertools

import pytest
import torch

import gcsr.native_epoch
from gcsr import TrialConfig, load_dataset
from gcsr.cohort import _Cohort, train_cohort
from gcsr.native_epoch import NativeEpoch
from gcsr.native_stack import NativeStack
from tests.gcsr.test_trainer import measured

pytestmark = pytest.mark.skipif(not NativeStack.available(), reason="no C compiler here")

MODES = (
    {"mode": "none"},
    {"mode": "baseline"},
    {"mode": "ours", "gamma": 1},
    {"mode": "ours", "gamma": "auto", "gamma_threshold": 0.5},
    {"mode": "ours_orig", "mu": 0.87},
)
PENALTIES = ({"regularizer": "l2", "lam": 3e-3}, {"regularizer": "l1", "lam": 1e-3})


def cohort(**fields):
    fields = {"model": "mlp3", "width": 0.3, "epochs": 3, "batch_size": 100} | fields
    return [
        TrialConfig(**(fields | mode | penalty | {"seed": number}))
        for number, (mode, penalty) in enumerate(itertools.product(MODES, PENALTIES))
    ]


@pytest.fixture
def epochs(monkeypatch):
    """Counts the epochs that are done in C."""
    done, run = [], NativeEpoch.run
    monkeypatch.setattr(NativeEpoch, "run", lambda *given: done.append(1) or run(*given))
    return done


def both_ways(configs, data, monkeypatch, epochs):
    whole = train_cohort(configs, data)
    assert len(epochs) == max(len(result.epochs) for result in whole)
    monkeypatch.setattr(_Cohort, "_written_out_epoch", lambda self: None)
    steps = train_cohort(configs, data)
    monkeypatch.undo()
    for one, other in zip(whole, steps, strict=True):
        assert measured(one) == measured(other)
    return whole


@pytest.mark.parametrize("batch_size", [100, 1, 7000])
def test_every_mode_and_regularizer(digits, monkeypatch, epochs, batch_size):
    short = {"model": "mlp1", "epochs": 1} if batch_size == 1 else {}
    results = both_ways(cohort(batch_size=batch_size, **short), digits, monkeypatch, epochs)
    if batch_size == 100:
        by_pi = [epoch.imposed_fraction for epoch in results[-2].epochs]
        assert any(0 < fraction < 1 for fraction in by_pi), "the decisions of ours_orig differ from step to step"


def test_an_epoch_in_parts_is_the_same(digits, monkeypatch):
    configs = cohort(batch_size=30)[-3:]
    whole = [measured(result) for result in train_cohort(configs, digits)]
    monkeypatch.setattr(gcsr.native_epoch, "_STEPS", 7)
    assert [measured(result) for result in train_cohort(configs, digits)] == whole


def test_held_out_images_learning_rates_and_momenta(monkeypatch, epochs):
    data = load_dataset("digits", holdout=0.3)
    configs = cohort(holdout=0.3, lr_decay_epochs=1, lr_decay=0.7)
    configs.append(TrialConfig(**(configs[1].to_dict() | {"momentum": 0.0, "lr": 0.2})))
    both_ways(configs, data, monkeypatch, epochs)


def test_one_that_diverges_leaves_the_others(digits, monkeypatch, epochs):
    configs = cohort(epochs=4)[:3]
    configs.insert(1, TrialConfig(**(configs[0].to_dict() | {"lr": 900.0})))
    results = both_ways(configs, digits, monkeypatch, epochs)
    assert [result.status for result in results] == ["finished", "diverged", "finished", "finished"]


@pytest.mark.parametrize("count", [1, 3])
def test_the_number_of_threads_changes_no_bit(digits, count):
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append([measured(r) for r in train_cohort(cohort(width=2.0, epochs=1)[-count:], digits)])
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_augmented_images_go_step_by_step(pictures, epochs):
    fields = {"dataset": "cifar10", "model": "mlp1", "width": 0.1, "epochs": 1, "batch_size": 50}
    train_cohort([TrialConfig(augment=True, **fields)], pictures)
    assert not epochs
    train_cohort([TrialConfig(augment=False, **fields)], pictures)
    assert epochs == [1]
