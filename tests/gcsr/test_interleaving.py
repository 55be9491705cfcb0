"""Trainings side by side: each is what it is alone (with a GPU, on streams), and how many there are at once."""

import functools
import traceback
import weakref

import pytest
import torch

import gcsr.learner
import gcsr.parameter_pass
from gcsr import TrialConfig, train
from gcsr.checkpoint import Checkpointer, FileStorage
from gcsr.config import MOST_INTERLEAVED
from gcsr.errors import OutOfTimeError
from gcsr.interleaving import Interleaved, Pace
from gcsr.trainer import training
from tests.gcsr.comparing import measured, moved
from tests.gcsr.replaying import NotedCapture

CPU = torch.device("cpu")
PICTURES = {"dataset": "cifar10", "model": "alexnet", "width": 0.1, "batch_size": 32, "lam": 1e-3}
MIXED = [
    TrialConfig(**PICTURES | fields)
    for fields in (
        {"mode": "ours", "gamma": 2, "epochs": 4},
        {"mode": "ours_orig", "mu": 0.5, "regularizer": "l1", "seed": 1, "epochs": 2},
        {"mode": "baseline", "model": "vgg11", "width": 0.05, "epochs": 3},
        {"mode": "baseline", "lr": 1000, "epochs": 3},  # diverges, and leaves the others
        {"mode": "ours", "gamma": 2, "epochs": 4},  # the first again: neither draws from the other's generator
    )
]


def interleaved(configs, data, at_once, **options):
    """Everything measured of each, in the given order."""
    device = data.train_images.device
    trainings = [functools.partial(training, config, data, **options) for config in configs]
    ended = {each.place: each.result for each in Interleaved(trainings, device, "fp32", at_once)}
    return [measured(ended[place]) for place in range(len(configs))]


@pytest.mark.parametrize("at_once", [1, 2, 5, 9])
def test_each_is_what_it_is_alone(at_once, pictures):
    before = torch.get_rng_state()
    assert interleaved(MIXED, pictures, at_once) == [measured(train(config, pictures)) for config in MIXED]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("taken", "share", "width"), [(2, 1.0, MOST_INTERLEAVED), (2, 0.25, 8), (30, 1.0, 2), (9, 1.0, 8), (50, 1.0, 1)]
)
def test_there_are_as_many_as_the_memory_of_this_process_holds(taken, share, width, monkeypatch):
    """80 GiB; each training takes ``taken``."""
    now = 0.0
    pace = Pace(torch.device("cuda"), clock=lambda: now)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: taken * pace.width)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 - taken * pace.width, 80))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", {None: share}.get)
    epochs = 0
    while not pace.settled:
        epochs += 1
        now += 10.0
        pace.measure(pace.width, epochs)
    assert pace.width == width


def test_so_is_each_whose_steps_are_replayed(pictures, monkeypatch):
    monkeypatch.setattr(gcsr.parameter_pass, "_available", lambda device_type: False)
    alone = [measured(train(config, pictures)) for config in MIXED]
    captures = []

    def capture_for(device, **_):
        captures.append(NotedCapture())
        return captures[-1]

    monkeypatch.setattr(gcsr.learner, "capture_for", capture_for)
    assert interleaved(MIXED, pictures, 3) == alone
    assert sum(capture.replays > 0 for capture in captures) >= 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("at_once", [3, "auto"])
def test_so_is_each_on_a_gpu(at_once, pictures):
    data = moved(pictures, "cuda")
    assert interleaved(MIXED, data, at_once) == [measured(train(config, data)) for config in MIXED]


def test_one_that_was_stopped_goes_on_beside_others(pictures, tmp_path):
    class Late(Checkpointer):
        """Out of time after two epochs."""

        def due(self, epochs_done):
            self.late = epochs_done == 2
            return self.late

        def out_of_time(self):
            return self.late

    def begun(config, kind):
        return functools.partial(
            training, config, pictures, checkpointer=kind(FileStorage(tmp_path / f"{config.trial_id}.pt"))
        )

    configs = MIXED[:2] + MIXED[2:3]
    first = list(Interleaved([begun(config, Late) for config in configs], CPU, "fp32", 3))
    assert sum(isinstance(each.result, OutOfTimeError) for each in first) == 2  # one has no more than two epochs
    second = {
        e.place: e.result for e in Interleaved([begun(config, Checkpointer) for config in configs], CPU, "fp32", 2)
    }
    assert [measured(second[place]) for place in range(3)] == [measured(train(each, pictures)) for each in configs]


def steps(count, log=None, name=None):
    for _ in range(count):
        if log is not None:
            log.append(name)
        yield True
    return name


def test_they_take_turns_and_the_next_begins_when_one_has_ended():
    log = []
    trainings = [functools.partial(steps, count, log, name) for name, count in (("a", 5), ("b", 1), ("c", 1))]
    assert [(each.place, each.result) for each in Interleaved(trainings, CPU, "fp32", 2)] == [
        (1, "b"),
        (2, "c"),
        (0, "a"),
    ]
    assert "".join(log) == "abaacaa"


class Faulty:
    """A training that raises in its second turn, the first ``times`` times that it is begun."""

    def __init__(self, error, times):
        self.error, self.times, self.begun = error, times, 0

    def __call__(self):
        self.begun += 1
        yield True
        if self.begun <= self.times:
            raise self.error
        yield True
        return "ended"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("CUDNN_STATUS_ALLOC_FAILED")])
def test_one_that_fails_beside_others_begins_again_when_they_have_ended(error):
    faulty = Faulty(error, times=1)
    others = [functools.partial(steps, 5, None, name) for name in "ab"]
    ended = list(Interleaved([faulty, *others], CPU, "fp32", 3))
    assert [(each.place, each.result) for each in ended] == [(1, "a"), (2, "b"), (0, "ended")]
    assert faulty.begun == 2


def test_what_it_raises_alone_is_its_own_and_so_is_what_no_memory_explains():
    again = Faulty(RuntimeError("always"), times=9)
    at_once = Faulty(ValueError("on purpose"), times=9)
    ended = list(Interleaved([again, at_once, functools.partial(steps, 5)], CPU, "fp32", 3))
    assert [each.place for each in ended] == [1, 2, 0]
    assert (again.begun, at_once.begun) == (2, 1)
    assert [str(each.result) for each in ended] == ["on purpose", "None", "always"]


def test_without_memory_there_are_fewer_from_then_on():
    log = []
    full = Faulty(torch.OutOfMemoryError("full"), times=1)
    others = [functools.partial(steps, 4, log, name) for name in "abc"]
    list(Interleaved([others[0], full, *others[1:]], CPU, "fp32", 2))
    assert "".join(log) == "aaaabbbbcccc"


SPEEDS = {  # steps a second of the device with so many at once → how many there are in the end
    "twice as many, twice as fast": (lambda count: 10.0 * count, MOST_INTERLEAVED),
    "full with four": (lambda count: 10.0 * min(count, 4), 4),
    "full with six": (lambda count: 10.0 * min(count, 6), 8),
    "full with one": (lambda count: 10.0, 1),
    "two are slower": (lambda count: 10.0 / count, 1),
    "eight are slower": (lambda count: 10.0 * min(count, 4) if count < 8 else 30.0, 4),
}


@pytest.mark.parametrize("case", SPEEDS)
def test_there_are_twice_as_many_as_long_as_that_is_faster(case):
    speed, expected = SPEEDS[case]
    now = 0.0
    pace = Pace(CPU, clock=lambda: now)
    width, turns = 1, 0
    while not pace.settled:
        if pace.width != width:
            width, turns = pace.width, 0
        turns += 1
        now += width / speed(width)
        pace.measure(width, epochs=turns // 10)
        assert now < 1e4
    assert pace.width == expected


def test_nothing_is_measured_while_graphs_are_set_up_or_too_few_are_left():
    now = 0.0
    pace = Pace(CPU, clock=lambda: now)
    for epochs, steps_made in ((0, 1), (1, 0)):
        for _ in range(100):
            now += 1.0
            pace.measure(steps_made, epochs)
    assert (pace.width, pace.settled) == (1, False)


def test_auto_is_one_on_a_cpu():
    log = []
    list(Interleaved([functools.partial(steps, 2, log, name) for name in "ab"], CPU, "fp32", "auto"))
    assert log == ["a", "a", "b", "b"]


def test_what_a_failed_training_held_is_free_when_it_has_ended():
    held = []

    def failing():
        tensor = torch.zeros(3)
        held.append(weakref.ref(tensor))
        yield True
        try:
            raise ValueError(tensor.shape)
        except ValueError as error:
            raise RuntimeError("on purpose") from error

    (ended,) = Interleaved([failing], CPU, "fp32", 1)
    assert "on purpose" in str(ended.result)
    assert held[0]() is None
    assert traceback.extract_tb(ended.result.__traceback__)[-1].name == "failing"
