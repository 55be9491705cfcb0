"""Whole epochs in C: the bits of the same epochs step by step, on any number of threads."""

import itertools

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import gcsr.native_epoch
from gcsr import GatedOptimizer, TrialConfig, load_dataset, train
from gcsr.native_epoch import NativeEpoch
from gcsr.native_network import NativeNetwork
from tests.gcsr.comparing import measured

pytestmark = pytest.mark.skipif(not NativeNetwork.available(), reason="no C compiler here")

MODES = (
    {"mode": "none"},
    {"mode": "baseline"},
    {"mode": "ours", "gamma": 1},
    {"mode": "ours", "gamma": "auto", "gamma_threshold": 0.5},
    {"mode": "ours_orig", "mu": 0.87},
)
PENALTIES = ({"regularizer": "l2", "lam": 3e-3}, {"regularizer": "l1", "lam": 1e-3})


def trials(**fields):
    fields = {"model": "mlp3", "width": 0.3, "epochs": 3, "batch_size": 100} | fields
    return [
        TrialConfig(**(fields | mode | penalty | {"seed": number}))
        for number, (mode, penalty) in enumerate(itertools.product(MODES, PENALTIES))
    ]


@pytest.fixture
def epochs(monkeypatch):
    """Counts the epochs that are done in C."""
    done, run = [], NativeEpoch.run

    def noted(*given):
        ran = run(*given)
        done.extend([1] * ran)
        return ran

    monkeypatch.setattr(NativeEpoch, "run", noted)
    return done


def both_ways(configs, data, epochs):
    """Results in C, after a look whether they are the same step by step."""
    found = []
    for config in configs:
        epochs.clear()
        whole = train(config, data)
        assert len(epochs) == len(whole.epochs) + (whole.status == "diverged")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(GatedOptimizer, "prepared_pass", lambda self: None)
            assert measured(train(config, data)) == measured(whole)
        found.append(whole)
    return found


@pytest.mark.parametrize("batch_size", [100, 1, 7000])
def test_every_mode_and_regularizer(digits, epochs, batch_size):
    short = {"model": "mlp1", "epochs": 1} if batch_size == 1 else {}
    results = both_ways(trials(batch_size=batch_size, **short), digits, epochs)
    if batch_size == 100:
        by_pi = [epoch.imposed_fraction for epoch in results[-2].epochs]
        assert any(0 < fraction < 1 for fraction in by_pi), "the decisions of ours_orig differ from step to step"


def test_an_epoch_in_parts_is_the_same(digits, monkeypatch):
    configs = trials(batch_size=30)[-3:]
    whole = [measured(train(config, digits)) for config in configs]
    monkeypatch.setattr(gcsr.native_epoch, "_STEPS", 7)
    assert [measured(train(config, digits)) for config in configs] == whole


def test_held_out_images_learning_rates_and_momenta(epochs):
    data = load_dataset("digits", holdout=0.3)
    configs = trials(holdout=0.3, lr_decay_epochs=1, lr_decay=0.7)
    configs.append(TrialConfig(**(configs[1].to_dict() | {"momentum": 0.0, "lr": 0.2})))
    both_ways(configs, data, epochs)


def test_one_that_diverges(digits, epochs):
    (result,) = both_ways([TrialConfig(**(trials(epochs=4)[0].to_dict() | {"lr": 900.0}))], digits, epochs)
    assert result.status == "diverged"


def test_the_number_of_threads_changes_no_bit(digits):
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(measured(train(trials(width=2.0, epochs=1)[-1], digits)))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_augmented_images_go_step_by_step(pictures, epochs):
    fields = {"dataset": "cifar10", "model": "mlp1", "width": 0.1, "epochs": 1, "batch_size": 50}
    train(TrialConfig(augment=True, **fields), pictures)
    assert not epochs
    train(TrialConfig(augment=False, **fields), pictures)
    assert epochs == [1]


def test_so_do_those_whose_optimizer_is_watched(digits, epochs):
    """A hook wants to be called in every step."""
    seen = []
    handle = register_optimizer_step_post_hook(lambda *_: seen.append(1))
    try:
        train(trials(epochs=1)[0], digits)
    finally:
        handle.remove()
    assert len(seen) == 14
    assert not epochs
