"""When a checkpoint is due, and what of one is not believed."""

from types import SimpleNamespace

import pytest
import torch

from gcsr import CheckpointError, TrialConfig, checkpoint
from gcsr.checkpoint import Checkpointer, FileStorage


class SlowStorage:
    """Moves the clock instead of waiting."""

    def __init__(self, clock, seconds):
        self._clock, self._seconds = clock, seconds

    def read(self):
        return None

    def write(self, data):
        self._clock.now += self._seconds

    def remove(self):
        return None


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: clock.now, time=lambda: clock.now))
    return clock


def _saved_in(seconds: int, clock, checkpointer) -> int:
    """How often a trial of one-second epochs saves until so many seconds have passed."""
    until, epoch, saved = clock.now + seconds, 0, 0
    while clock.now < until:
        clock.now += 1
        epoch += 1
        if checkpointer.due(epoch):
            checkpointer.save(TrialConfig(), {})
            saved += 1
    return saved


@pytest.mark.parametrize(
    ("options", "takes", "saved"),
    [
        ({}, 0.0, 1000),
        ({"every_epochs": 4}, 0.0, 250),
        ({"min_seconds": 10.0}, 0.0, 100),
        ({"min_seconds": 10.0, "max_share": 0.05}, 0.25, 97),  # 10 s of training, a quarter of saving
        ({"min_seconds": 10.0, "max_share": 0.05}, 5.0, 10),  # a store that is busy: 95 s, 5 of saving
        ({"max_share": 0.5}, 1.0, 500),
    ],
)
def test_saving_takes_no_more_than_its_share_of_the_time(clock, options, takes, saved):
    checkpointer = Checkpointer(SlowStorage(clock, takes), **options)
    found = _saved_in(1000, clock, checkpointer)
    assert abs(found - saved) <= 1 + saved // 50
    assert found * takes <= 1000 * options.get("max_share", 1.0) + takes


def test_after_the_deadline_every_epoch_is_saved(clock):
    checkpointer = Checkpointer(SlowStorage(clock, 1.0), min_seconds=100.0, deadline=clock.now + 50)
    assert not checkpointer.due(1)
    clock.now += 51
    assert checkpointer.due(2)
    assert checkpointer.out_of_time()


def test_a_single_wrong_bit_is_damage(tmp_path):
    storage = FileStorage(tmp_path / "c.pt")
    weights = torch.full((1000,), 0.5)
    Checkpointer(storage).save(TrialConfig(), {"weights": weights})
    whole = storage.path.read_bytes()
    assert torch.equal(Checkpointer(storage).load(TrialConfig(), torch.device("cpu"))["weights"], weights)
    middle = whole.index(weights.numpy().tobytes()) + 2000
    for position in (middle, *range(0, len(whole), 97)):
        wrong = bytearray(whole)
        wrong[position] ^= 1
        storage.write(bytes(wrong))
        try:
            state = Checkpointer(storage).load(TrialConfig(), torch.device("cpu"))
        except CheckpointError as error:
            assert "c.pt is no checkpoint of gcsr, or damaged" in str(error)
        else:  # a byte that only fills up
            assert position != middle
            assert torch.equal(state["weights"], weights)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), torch.AcceleratorError("CUDA error")])
def test_a_gpu_that_is_full_or_failed_is_no_damage_of_the_file(error, tmp_path, monkeypatch):
    """Damaged checkpoints are deleted, and their trials begin anew."""
    checkpointer = Checkpointer(FileStorage(tmp_path / "trial.pt"))
    checkpointer.save(TrialConfig(), {"weights": torch.zeros(3)})

    def load(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(type(error)):
        checkpointer.load(TrialConfig(), torch.device("cpu"))
