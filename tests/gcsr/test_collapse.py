"""Early ends of trainings that cannot learn any more."""

from dataclasses import replace

import pytest
import torch
from scipy import stats

from gcsr import TrialConfig, train
from gcsr.cohort import train_cohort
from gcsr.collapse import WINDOW, constant_loss, has_collapsed
from gcsr.records import EpochRecord

DYING = [
    EpochRecord(
        epoch=epoch,
        train_loss=2.31,
        test_accuracy=0.1,
        val_accuracy=None,
        pi=0.5,
        imposed_fraction=1.0,
        grad_abs_mean=1e-4 * 0.8**epoch,
        weight_abs_mean=0.05 * 0.9**epoch,
        sparsity=0.0,
        lr=0.05,
        lam_effective=0.1,
        seconds=1.0,
    )
    for epoch in range(WINDOW + 1)
]


def test_constant_loss_is_the_entropy_of_the_labels(digits):
    assert constant_loss(digits.train_labels) == pytest.approx(stats.entropy(digits.train_labels.bincount()))
    assert constant_loss(torch.zeros(5, dtype=torch.int64)) == 0


def test_all_signs_of_collapse_are_needed():
    assert has_collapsed(DYING, 2.302)
    assert not has_collapsed(DYING[1:], 2.302)
    assert not has_collapsed(DYING, 2.32), "better than a constant answer"
    middle, last = WINDOW // 2, WINDOW
    for place, change in (
        (middle, {"train_loss": 2.3}),
        (middle, {"imposed_fraction": 0.0}),
        (middle, {"weight_abs_mean": 0.06}),
        (0, {"weight_abs_mean": 0.044}),  # after it they are 0.045
        (last, {"grad_abs_mean": 1e-4}),
        (last, {"grad_abs_mean": 0.91e-4}),
        (last, {"grad_abs_mean": float("nan")}),
    ):
        changed = [replace(record, **change) if k == place else record for k, record in enumerate(DYING)]
        assert not has_collapsed(changed, 2.302), change
    assert has_collapsed(DYING, DYING[0].train_loss), "as good as a constant answer is no better"
    assert has_collapsed([*DYING[:-1], replace(DYING[-1], grad_abs_mean=0.89e-4)], 2.302)
    free = replace(DYING[0], imposed_fraction=0.0, train_loss=1.0)
    assert has_collapsed([free, *DYING[1:]], 2.302), "what was before the window"


def test_weights_that_are_next_to_nothing_need_not_shrink_any_more():
    # what L1 leaves of AlexNet on CIFAR-100 at λ = 0.0005 (tests/paper): |w| flickers around zero, |∇L| hardly falls
    flicker = (4.67e-08, 4.99e-08, 3.30e-08, 4.88e-08, 4.84e-08, 5.32e-08, 4.44e-08, 5.10e-08, 4.90e-08)
    fading = (2.93e-07, 2.92e-07, 2.88e-07, 2.86e-07, 2.84e-07, 2.83e-07, 2.83e-07, 2.82e-07, 2.81e-07)
    pairs = zip(flicker, fading, strict=True)
    dead = [DYING[0], *(replace(DYING[0], weight_abs_mean=w, grad_abs_mean=g) for w, g in pairs)]
    assert has_collapsed(dead, 2.302)
    assert not has_collapsed([*dead[:-1], replace(dead[-1], grad_abs_mean=3e-7)], 2.302), "∇L grows"
    alive = replace(DYING[0], weight_abs_mean=1e-5)  # in the first epoch: 4e-8 is small, not next to nothing
    assert not has_collapsed([alive, *dead[1:]], 2.302)


CASES = [
    TrialConfig(mode="baseline", lam=0.01, epochs=40),
    TrialConfig(mode="baseline", lam=0.004, epochs=40, regularizer="l1"),
    TrialConfig(mode="baseline", lam=0.003, epochs=40),  # learns, after a long while at chance
    TrialConfig(mode="ours", lam=0.006, epochs=40),
    TrialConfig(mode="none", epochs=40),
]


def test_it_ends_what_collapsed_and_nothing_else_alone_and_in_a_cohort(digits):
    undisturbed = train_cohort(CASES, digits)
    together = train_cohort(CASES, digits, stop_collapsed=True)
    alone = [train(config, digits, stop_collapsed=True) for config in CASES]
    assert [r.status for r in undisturbed] == ["collapsed", "collapsed", "finished", "finished", "finished"]
    for whole, ended, single in zip(undisturbed, together, alone, strict=True):
        assert ended.status == single.status == whole.status
        assert len(ended.epochs) == len(single.epochs)
        assert (len(ended.epochs) < 30) == (whole.status == "collapsed")

        def metrics(record):
            return replace(record, seconds=0.0)

        # The others go on, with the same bits, in a smaller cohort.
        assert [*map(metrics, ended.epochs)] == [*map(metrics, whole.epochs[: len(ended.epochs)])]


def test_a_cohort_of_which_all_collapse(digits):
    configs = [TrialConfig(mode="baseline", lam=0.02, epochs=30, seed=seed) for seed in range(2)]
    results = train_cohort(configs, digits, stop_collapsed=True)
    assert {(r.status, len(r.epochs) < 20) for r in results} == {("collapsed", True)}
