"""The trainer: the paper's claim on real digits, exact resume, and how trials end."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch

import gcsr.parameter_pass
from gcsr import CheckpointError, TrialConfig, load_dataset, train
from gcsr.checkpoint import Checkpointer, FileStorage
from gcsr.cohort import train_cohort
from gcsr.native_network import NativeNetwork
from gcsr.plain_network import TorchNetwork
from gcsr.records import summarized
from tests.gcsr.comparing import measured


@pytest.mark.parametrize(("regularizer", "lam"), [("l2", 6e-3), ("l1", 3e-3)])
def test_strong_regularization_collapses_the_baseline_and_not_the_gated_modes(digits, regularizer, lam):
    ends = {
        mode: train(TrialConfig(model="mlp7", regularizer=regularizer, mode=mode, lam=lam, gamma="auto"), digits)
        for mode in ("baseline", "ours", "ours_orig")
    }
    assert ends["baseline"].status == "collapsed"
    for mode in ("ours", "ours_orig"):
        assert ends[mode].status == "finished"
        assert ends[mode].test_accuracy > 0.9
    if regularizer == "l1":
        assert ends["ours"].sparsity > 0.3
    # Figure 2: in the collapsing network |∇L| and |w| decay; Figure 3: π starts near 0.5 and rises where it learns.
    baseline, ours = ends["baseline"].epochs, ends["ours"].epochs
    assert baseline[-1].grad_abs_mean < baseline[0].grad_abs_mean / 3
    assert max(r.grad_abs_mean for r in ours) > 10 * baseline[-1].grad_abs_mean
    assert abs(ours[0].pi - 0.5) < 0.1
    assert max(r.pi for r in ours) > 0.6
    assert ends["ours"].gamma_used > 5


@pytest.mark.parametrize("regularizer", ["l1", "l2"])
def test_written_out_networks_learn_as_by_autograd(digits, regularizer, request, monkeypatch):
    config = TrialConfig(model="mlp4", mode="ours_orig", mu=0.55, lam=2e-3, regularizer=regularizer, epochs=4)
    answered, kind = [], NativeNetwork if NativeNetwork.available() else TorchNetwork
    answers = kind.answers
    monkeypatch.setattr(kind, "answers", lambda *given: answered.append(1) or answers(*given))
    written_out = train(config, digits)
    assert len(answered) == 4, "after each epoch"
    request.getfixturevalue("by_autograd")
    expected = train(config, digits)
    assert len(answered) == 4
    for one, two in zip(written_out.epochs, expected.epochs, strict=True):
        assert one.imposed_fraction == two.imposed_fraction
        for name in ("train_loss", "test_accuracy", "pi", "grad_abs_mean", "weight_abs_mean", "sparsity"):
            assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-2, abs=5e-3), name


def test_gamma_is_the_number_of_free_epochs(digits):
    config = TrialConfig(model="mlp1", mode="ours", lam=1e-3, gamma=2, epochs=4)
    result = train(config, digits)
    assert [r.imposed_fraction for r in result.epochs] == [0, 0, 1, 1]
    assert [r.lam_effective for r in result.epochs] == [0, 0, 1e-3, 1e-3]
    assert result.imposed_fraction == 0.5


def test_the_learning_rate_halves_on_schedule(digits):
    result = train(TrialConfig(model="mlp1", epochs=5, lr_decay_epochs=2), digits)
    assert [r.lr for r in result.epochs] == [0.05, 0.05, 0.025, 0.025, 0.0125]


def test_pi_is_measured_with_the_target_where_nothing_is_imposed(digits):
    free = train(TrialConfig(model="mlp2", mode="none", lam=6e-3, epochs=2), digits)
    assert [r.imposed_fraction for r in free.epochs] == [0, 0]
    assert all(0 < r.pi < 1 for r in free.epochs)


class StopHereError(Exception):
    pass


RESUMED = {
    "plain": ("digits", {"model": "mlp2", "mode": "ours_orig", "regularizer": "l1", "lam": 2e-3}),
    "not fused": ("digits", {"model": "mlp2", "mode": "ours_orig", "regularizer": "l1", "lam": 2e-3,
                             "lr_decay_epochs": 2}),
    "auto gamma": ("digits", {"model": "mlp2", "mode": "ours", "lam": 1e-3, "gamma": "auto", "gamma_threshold": 0.5}),
    "dropout and augmentation": ("pictures", {"dataset": "cifar10", "model": "alexnet", "width": 0.1, "mode": "ours",
                                              "lam": 1e-3, "gamma": 2, "batch_size": 32}),
}  # fmt: skip


@pytest.mark.parametrize("case", RESUMED)
@pytest.mark.parametrize("stop_after", [1, 3])
def test_an_interrupted_run_resumes_to_the_same_bits(case, stop_after, request, tmp_path, monkeypatch):
    fixture, fields = RESUMED[case]
    if case == "not fused":
        monkeypatch.setattr(gcsr.parameter_pass, "_available", lambda device_type: False)
    data, config = request.getfixturevalue(fixture), TrialConfig(epochs=5, **fields)
    undisturbed = train(config, data)

    def stop(record):
        # the state that counts is the one saved after the epoch before
        if record.epoch == stop_after:
            raise StopHereError

    with pytest.raises(StopHereError):
        train(config, data, checkpointer=Checkpointer(FileStorage(tmp_path / "c.pt")), on_epoch=stop)
    torch.rand(17)  # what happens in between must not matter
    epochs = []
    resumed = train(
        config,
        data,
        checkpointer=Checkpointer(FileStorage(tmp_path / "c.pt")),
        on_epoch=lambda r: epochs.append(r.epoch),
    )
    assert epochs == list(range(stop_after, 5))
    assert measured(resumed) == measured(undisturbed)


def test_the_callers_random_state_is_left_alone(digits):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(TrialConfig(model="mlp1", epochs=1), digits)
    assert torch.equal(torch.rand(3), expected)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype, "the caller's comes back"
    finally:
        torch.set_default_dtype(before)


AMBIENT = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


@pytest.mark.parametrize("state", AMBIENT)
@pytest.mark.parametrize("written_out", [True, False])
def test_the_callers_torch_state_is_no_matter(state, written_out, digits, request):
    if not written_out:
        request.getfixturevalue("by_autograd")
    config = TrialConfig(model="mlp2", mode="ours_orig", lam=1e-3, epochs=2)
    expected = measured(train(config, digits)), [measured(r) for r in train_cohort([config], digits)]
    with AMBIENT[state]():
        found = measured(train(config, digits)), [measured(r) for r in train_cohort([config], digits)]
    assert found == expected


def test_bf16_weights_are_those_of_the_step(digits):
    """Where autocast is nested, torch keeps the copies that it made of them."""
    full, half = (train(TrialConfig(model="mlp2", precision=p, epochs=3), digits) for p in ("fp32", "bf16"))
    with torch.autocast("cpu", torch.bfloat16):
        nested = train(TrialConfig(model="mlp2", precision="bf16", epochs=3), digits)
    assert measured(nested) == measured(half)
    assert half.train_loss == pytest.approx(full.train_loss, rel=0.05)


def test_seeds_differ_and_repeat(digits):
    one, again, other = (train(TrialConfig(model="mlp1", epochs=1, seed=s), digits) for s in (0, 0, 1))
    assert measured(one) == measured(again)
    assert measured(one) != measured(other)


@pytest.mark.parametrize("lr", [30.0, 1000.0])
def test_divergence_keeps_what_it_had(digits, lr):
    result = train(TrialConfig(model="mlp3", lr=lr, epochs=30), digits)
    assert result.status == "diverged"
    assert len(result.epochs) < 30
    assert all(np.isfinite(r.train_loss) for r in result.epochs)
    if result.epochs:
        assert result.test_accuracy == result.epochs[-1].test_accuracy
    else:
        assert result.test_accuracy is None


@pytest.mark.parametrize("alone", [True, False])
def test_weights_that_a_last_step_makes_infinite_diverged(digits, alone):
    fields = {"model": "mlp10", "width": 0.1, "lr": 300.0, "batch_size": 5000, "mode": "none"}
    configs = [TrialConfig(epochs=epochs, **fields) for epochs in (3, 4)]
    before, result = [train(c, digits) if alone else train_cohort([c], digits)[0] for c in configs]
    assert (before.status, result.status) == ("collapsed", "diverged")
    assert len(result.epochs) == 3


def test_the_share_of_all_steps_is_the_same_number_in_every_version_of_python(digits):
    # Python's own sum rounds otherwise from 3.12 on: of ten times 0.1 it makes 1.0, and 0.9999999999999999 before.
    result = train(TrialConfig(model="mlp1", epochs=1), digits)
    records = [replace(result.epochs[0], imposed_fraction=0.1)] * 10
    assert summarized(records, digits, gamma_used=None, parameters=1).imposed_fraction == 0.1


def test_hold_out_is_measured():
    result = train(TrialConfig(model="mlp1", epochs=1, holdout=0.2), load_dataset("digits", holdout=0.2))
    assert 0 < result.val_accuracy < 1


@pytest.mark.parametrize("damage", [b"", b"PK", b"x" * 5000, None])
def test_damaged_checkpoints_are_named(digits, tmp_path, damage):
    storage = FileStorage(tmp_path / "c.pt")
    config = TrialConfig(model="mlp1", epochs=1)
    if damage is None:
        train(config, digits, checkpointer=Checkpointer(storage))
        damage = storage.read()[:-200]
    storage.write(damage)
    with pytest.raises(
        CheckpointError,
        match=r"c\.pt is no checkpoint of gcsr, or damaged .*expected one, or a file",
    ):
        train(config, digits, checkpointer=Checkpointer(storage))


def test_a_checkpoint_of_another_trial_is_refused(digits, tmp_path):
    checkpointer = Checkpointer(FileStorage(tmp_path / "c.pt"))
    train(TrialConfig(model="mlp1", epochs=1), digits, checkpointer=checkpointer)
    with pytest.raises(CheckpointError, match=r"c\.pt is of another trial: seed 0 instead of 1$"):
        train(TrialConfig(model="mlp1", epochs=1, seed=1), digits, checkpointer=checkpointer)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": "cuda"}, "written on cuda; expected cpu"),
        ({"model": {}}, "Missing key"),
        ({"records": [{"epoch": 0}]}, "missing"),
        ({"generator": torch.zeros(3, dtype=torch.uint8)}, ""),
    ],
)
def test_a_state_that_does_not_fit_is_refused(digits, tmp_path, change, words):
    config, checkpointer = TrialConfig(model="mlp1", epochs=2), Checkpointer(FileStorage(tmp_path / "c.pt"))
    train(config, digits, checkpointer=checkpointer)
    state = checkpointer.load(config, torch.device("cpu"))
    checkpointer.save(config, state | change)
    with pytest.raises(CheckpointError, match=f"its state is no trial's: .*{words}"):
        train(config, digits, checkpointer=checkpointer)


@pytest.mark.skipif(not NativeNetwork.available(), reason="no C compiler here")
def test_a_batch_that_is_larger_than_the_data_takes_no_more_memory(digits, monkeypatch):
    batches, scratch = [], NativeNetwork.scratch

    def spied(network, batch, **options):
        batches.append(batch)
        return scratch(network, batch, **options)

    monkeypatch.setattr(NativeNetwork, "scratch", spied)
    train(TrialConfig(model="mlp1", epochs=1, batch_size=1_000_000), digits)
    assert max(batches) == 1347
