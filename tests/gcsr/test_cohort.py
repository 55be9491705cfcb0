"""Trials trained together end as they would have alone: decisions exactly, sums to rounding."""

import itertools

import pytest
import torch

from gcsr import ConfigError, TrialConfig, load_dataset, train
from gcsr.cohort import train_cohort
from gcsr.config import COHORT_FIELDS, cohort_key
from gcsr.data import Dataset


def close(together, alone, rel=1e-3):
    assert together.status == alone.status
    assert together.gamma_used == alone.gamma_used
    assert together.parameters == alone.parameters
    assert together.imposed_fraction == alone.imposed_fraction
    for name in ("train_loss", "pi", "grad_abs_mean", "weight_abs_mean", "test_accuracy", "sparsity"):
        assert getattr(together, name) == pytest.approx(getattr(alone, name), rel=rel, abs=1e-3), name
    if alone.val_accuracy is None:
        assert together.val_accuracy is None
    else:
        assert together.val_accuracy == pytest.approx(alone.val_accuracy, abs=1e-3)
    for one, two in zip(together.epochs, alone.epochs, strict=True):
        assert (one.epoch, one.lr, one.imposed_fraction) == (two.epoch, two.lr, two.imposed_fraction)
        assert one.lam_effective == pytest.approx(two.lam_effective)


@pytest.mark.usefixtures("gate_path")
def test_every_mode_regularizer_seed_and_rate_side_by_side(digits):
    modes = ({"mode": "none"}, {"mode": "baseline"}, {"mode": "ours", "gamma": 2}, {"mode": "ours", "gamma": "auto"})
    modes += ({"mode": "ours_orig", "mu": 0.55},)
    penalties = ({"regularizer": "l2", "lam": 3e-3}, {"regularizer": "l1", "lam": 1e-3})
    configs = [
        TrialConfig(
            model="mlp3", width=0.5, epochs=5, batch_size=300, seed=number, lr_decay_epochs=2, **mode, **penalty
        )
        for number, (mode, penalty) in enumerate(itertools.product(modes, penalties))
    ]
    configs.append(TrialConfig(model="mlp3", width=0.5, epochs=5, batch_size=300, lr=0.1, momentum=0.0, lam=1e-3))
    for config, together in zip(configs, train_cohort(configs, digits), strict=True):
        close(together, train(config, digits))


@pytest.mark.usefixtures("gate_path")
def test_a_collapse_beside_a_learner_and_a_divergence(digits):
    fields = {"model": "mlp6", "epochs": 12, "batch_size": 128}
    configs = [
        TrialConfig(mode="baseline", lam=0.05, **fields),
        TrialConfig(mode="none", **fields),
        TrialConfig(mode="none", lr=900.0, seed=1, **fields),
    ]
    results = train_cohort(configs, digits)
    assert [r.status for r in results] == [train(c, digits).status for c in configs]
    assert [r.status for r in results] == ["collapsed", "finished", "diverged"]
    assert len(results[2].epochs) == len(train(configs[2], digits).epochs)


def test_hold_out_and_a_ragged_batch():
    fields = {"model": "mlp2", "width": 0.25, "epochs": 2, "holdout": 0.25, "batch_size": 400, "mode": "baseline"}
    data = load_dataset("digits", holdout=0.25)
    configs = [TrialConfig(lam=lam, **fields) for lam in (0.0, 1e-3)]
    for config, together in zip(configs, train_cohort(configs, data), strict=True):
        close(together, train(config, data))


def pictures():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (40,), generator=generator)
    scale = torch.full((1, 3, 1, 1), 1 / 64)
    return Dataset(
        name="cifar10",
        train_images=images,
        train_labels=labels,
        val_images=None,
        val_labels=None,
        test_images=images[:20],
        test_labels=labels[:20],
        scale=scale,
        shift=-2 * torch.ones_like(scale),
        classes=10,
    )


@pytest.mark.parametrize("model", ["alexnet", "vgg11"])
def test_convolutions_and_augmentation(model):
    fields = {"dataset": "cifar10", "model": model, "width": 0.05, "epochs": 2, "batch_size": 16, "dropout": 0.0}
    configs = [
        TrialConfig(mode="ours_orig", mu=0.5, lam=lam, seed=seed, **fields) for lam, seed in ((1e-3, 0), (1e-2, 1))
    ]
    data = pictures()
    for config, together in zip(configs, train_cohort(configs, data), strict=True):
        close(together, train(config, data))


def test_dropout_differs_between_trials_and_from_step_to_step():
    fields = {"dataset": "cifar10", "model": "alexnet", "width": 0.05, "epochs": 2, "batch_size": 16, "dropout": 0.5}
    same = [TrialConfig(mode="none", **fields)] * 2  # but for dropout the same trial
    one, two = train_cohort(same, pictures())
    assert one.train_loss != two.train_loss


def test_no_trials_are_no_results(digits):
    assert train_cohort([], digits) == []


def test_data_of_another_trial_are_refused(digits):
    with pytest.raises(ConfigError, match=r"holdout: 0\.2 is not allowed; expected 0, as in the data given"):
        train_cohort([TrialConfig(holdout=0.2)], digits)


def test_the_callers_random_state_is_left_alone(digits):
    before = torch.get_rng_state()
    train_cohort([TrialConfig(model="mlp1", epochs=1)], digits)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("field", COHORT_FIELDS)
def test_trials_that_cannot_be_stacked_are_refused(field, digits):
    other = {
        "dataset": {"dataset": "cifar100"},
        "model": {"model": "vgg11"},
        "width": {"width": 2.0},
        "epochs": {"epochs": 2},
        "batch_size": {"batch_size": 64},
        "dropout": {"dropout": 0.1},
        "augment": {"augment": False},
        "inputs": {"inputs": "unit"},
        "precision": {"precision": "bf16"},
        "holdout": {"holdout": 0.5},
    }[field]
    base = {"dataset": "cifar10", "model": "alexnet", "epochs": 1}
    configs = [TrialConfig(**base), TrialConfig(**base | other)]
    assert cohort_key(configs[0]) != cohort_key(configs[1])
    with pytest.raises(ConfigError, match="as the cohort's first trial has"):
        train_cohort(configs, digits)
