"""Captured steps: what a graph would do (tests/gcsr/replaying.py; with a GPU, a real one) is what every step does."""

import contextlib
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

import gcsr.cohort
import gcsr.learner
import gcsr.parameter_pass
import gcsr.trainer
from gcsr import TrialConfig, train
from gcsr.checkpoint import Checkpointer, FileStorage
from gcsr.cohort import train_cohort
from gcsr.graph import CudaCapture, ReplayedStep
from tests.gcsr.comparing import measured, moved
from tests.gcsr.replaying import NotedCapture

CASES = {
    "dropout, crops, γ, a ragged batch": ("pictures", {"model": "alexnet", "width": 0.1, "mode": "ours", "gamma": 3}),
    "λ by π, L1": ("pictures", {"model": "vgg11", "width": 0.05, "mode": "ours_orig", "mu": 0.5, "regularizer": "l1"}),
    "a falling learning rate": ("digits", {"model": "mlp2", "mode": "baseline", "lr_decay_epochs": 2}),
    "bf16": ("pictures", {"model": "alexnet", "width": 0.1, "mode": "baseline", "precision": "bf16"}),
    "without crops": ("pictures", {"model": "alexnet", "width": 0.1, "precision": "bf16", "augment": False}),
    "odd batches": ("pictures", {"model": "alexnet", "width": 0.1, "mode": "baseline", "batch_size": 33}),
    "γ = auto": ("digits", {"model": "mlp2", "mode": "ours", "gamma": "auto", "gamma_threshold": 0.5}),
}  # fmt: skip


@pytest.fixture
def noted(monkeypatch, by_autograd):
    """Steps on the CPU are captured, too; torch's operations are what such a capture sees."""
    capture = NotedCapture()
    monkeypatch.setattr(gcsr.parameter_pass, "_available", lambda device_type: False)
    for module in (gcsr.learner, gcsr.cohort):
        monkeypatch.setattr(module, "capture_for", lambda device, **_: capture)
    return capture


def config_of(case, **more):
    fixture, fields = CASES[case]
    batch = {"batch_size": 32, "dataset": "cifar10"} if fixture == "pictures" else {}
    return fixture, TrialConfig(**{"lam": 1e-3, "epochs": 5} | batch | fields | more)


@pytest.mark.parametrize("case", CASES)
def test_replayed_steps_are_the_steps(case, request, noted, monkeypatch):
    fixture, config = config_of(case)
    data = request.getfixturevalue(fixture)
    replayed = train(config, data)
    assert noted.captures >= 2, "whole batches, and the ragged last one"
    assert noted.replays > noted.captures
    monkeypatch.setattr(gcsr.learner, "capture_for", lambda device, **_: None)
    assert measured(replayed) == measured(train(config, data))


COHORTS = {
    "every mode, one that leaves": ("digits", [
        {"model": "mlp2", "lam": 1e-3} | fields
        for fields in (
            {"mode": "baseline"},
            {"mode": "baseline", "lr": 1000},
            {"mode": "ours", "gamma": 3, "seed": 1, "lr_decay_epochs": 2},
            {"mode": "ours_orig", "regularizer": "l1", "mu": 0.5},
        )
    ]),
    "crops and dropout": ("pictures", [
        {"dataset": "cifar10", "model": "alexnet", "width": 0.1, "batch_size": 32, "mode": "ours_orig", "lam": lam}
        for lam in (1e-3, 1e-2)
    ]),
}  # fmt: skip


@pytest.mark.parametrize("case", COHORTS)
def test_a_cohorts_replayed_steps_are_its_steps(case, request, noted, monkeypatch):
    fixture, fields = COHORTS[case]
    data = request.getfixturevalue(fixture)
    configs = [TrialConfig(epochs=6, **each) for each in fields]
    replayed = train_cohort(configs, data)
    assert noted.replays > noted.captures >= 2
    monkeypatch.setattr(gcsr.cohort, "capture_for", lambda device, **_: None)
    expected = train_cohort(configs, data)
    assert [measured(result) for result in replayed] == [measured(result) for result in expected]
    if fixture == "digits":
        assert [result.status for result in replayed].count("diverged") == 1


def test_steps_are_captured_anew_when_what_they_cannot_ask_changes(digits, noted):
    train(TrialConfig(model="mlp1", mode="baseline", lam=1e-3, epochs=6, batch_size=1347), digits)
    assert (noted.captures, noted.replays) == (1 + 1, 3 + 3)  # steps, and the test images
    train(TrialConfig(model="mlp1", mode="ours", gamma=5, lam=1e-3, epochs=8, batch_size=1347), digits)
    # γ = 5: after one more step that is not captured.
    assert (noted.captures, noted.replays) == (2 + 2 + 1, 6 + (2 + 2) + 5)


def test_a_trial_resumes_into_replayed_steps(pictures, noted, tmp_path, monkeypatch):
    _, config = config_of("dropout, crops, γ, a ragged batch", epochs=6)
    whole = train(config, pictures)
    path = FileStorage(tmp_path / "trial.pt")

    def stop(record):
        if record.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, pictures, checkpointer=Checkpointer(path, min_seconds=0), on_epoch=stop)
    assert measured(train(config, pictures, checkpointer=Checkpointer(path))) == measured(whole)


@pytest.mark.parametrize("interleaved", [False, True])
def test_steps_are_captured_on_the_stream_of_their_replays(interleaved, monkeypatch):
    """cuBLAS's workspaces belong to a stream, and torch's streams are few: two graphs of one would race for them."""
    current = "lane" if interleaved else "default"
    captured_on = []

    @contextlib.contextmanager
    def graph(captured, *, stream, capture_error_mode):
        captured_on.append(stream)
        yield

    fakes = {"current_stream": lambda d: current, "default_stream": lambda d: "default", "Stream": lambda d: "new"}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    CudaCapture(torch.device("cuda")).capture(lambda: None)
    assert captured_on == ["lane" if interleaved else "new"]


def test_the_simulation_refuses_what_a_gpu_refuses():
    total = torch.zeros(())
    for step in (
        lambda size, x: x.sum().item(),
        lambda size, x: x.nonzero(),
        lambda size, x: total.add_(torch.tensor(1.0)),
    ):
        replayed = ReplayedStep(NotedCapture(), after_capture=lambda: None)
        with pytest.raises(RuntimeError, match="not permitted"):
            for _ in range(5):
                replayed(step, 0, 1, torch.ones(3))


def test_a_replay_has_the_numbers_of_its_capture_and_the_inputs_of_its_call():
    state, factor, told = torch.zeros(()), [1.0], []
    capture = NotedCapture()
    replayed = ReplayedStep(capture, after_capture=lambda: told.append(1))

    def step(size, x):
        state.add_(factor[0] * x.sum())

    for number in range(1, 5):
        replayed(step, None, 1, torch.tensor([float(number)]))
    assert (state.item(), capture.replays, told) == (1 + 2 + 3 + 4, 1, [1])
    factor[0] = 100.0  # what was decided is still the same: the graph does not hear of it
    replayed(step, None, 1, torch.tensor([5.0]))
    assert state.item() == 15


@pytest.mark.parametrize("trained", [train, lambda config, data: train_cohort([config], data)])
def test_nothing_of_a_trial_outlives_it(trained, digits, noted, monkeypatch):
    """A worker trains many trials, and a graph holds a GPU's memory: it must not wait for the garbage collector."""
    alive = []
    new_network = gcsr.trainer.new_network

    def watched(*arguments):
        network = new_network(*arguments)
        alive.extend(weakref.ref(p) for p in network.parameters())
        return network

    for module in (gcsr.trainer, gcsr.cohort):
        monkeypatch.setattr(module, "new_network", watched)
    gc.collect()
    gc.disable()
    try:
        trained(TrialConfig(model="mlp1", mode="ours", lam=1e-3, epochs=2), digits)
        assert alive
        assert not [ref for ref in alive if ref() is not None]
    finally:
        gc.enable()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("case", CASES)
def test_a_real_graph_is_the_steps(case, request, monkeypatch):
    fixture, config = config_of(case)
    data = moved(request.getfixturevalue(fixture), "cuda")
    replayed = train(config, data)
    monkeypatch.setenv("GCSR_GRAPHS", "0")
    assert measured(replayed) == measured(train(config, data))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("case", COHORTS)
def test_a_cohorts_real_graph_is_its_steps(case, request, monkeypatch):
    fixture, fields = COHORTS[case]
    data = moved(request.getfixturevalue(fixture), "cuda")
    configs = [TrialConfig(epochs=6, **each) for each in fields]
    replayed = train_cohort(configs, data)
    monkeypatch.setenv("GCSR_GRAPHS", "0")
    assert [measured(result) for result in replayed] == [measured(result) for result in train_cohort(configs, data)]
