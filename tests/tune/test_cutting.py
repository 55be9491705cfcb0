import subprocess
import sys

import pytest

from gcsr import TrialConfig
from tune.cutting import UnitCutter, alone_on_cpus, are_in_turn, is_stacked
from tune.job import SweepJob
from tune.spec import SweepSpec, load_spec

MIXED = SweepSpec(
    experiment="test",
    grid={"model": ["mlp1", "mlp2"], "width": 0.25, "epochs": 2, "mode": ["baseline", "ours_orig"], "seed": [0, 1, 2]},
).trials()


def cutter(*, gpu=False, slots=2, **fields):
    job = alone_on_cpus(SweepJob(experiment="test", store="/nowhere", **fields), gpu=gpu)
    return UnitCutter(job=job, gpu=gpu, slots=slots)


def cut(trials, missing=None, **fields):
    return cutter(**fields).cut(trials, missing if missing is None else {config.trial_id for config in missing})


@pytest.mark.parametrize("size", [2, 4, 5, 6, 100])
def test_cohorts_are_a_partition_of_what_can_be_stacked(size):
    found = cut(MIXED, cohort=size)
    assert sorted(c.trial_id for unit in found for c in unit) == sorted(c.trial_id for c in MIXED)
    assert all(len(unit) <= size and len({c.model for c in unit}) == 1 for unit in found)
    assert max(map(len, found)) - min(map(len, found)) <= 1
    assert len(found) == 2 * -(-6 // size)


@pytest.mark.parametrize(
    ("fields", "at_once"),
    [
        ({}, 2),
        ({"gpu": True}, 2 * 6),
        ({"cohort": 4}, 2 * 3),
        ({"cohort": 1}, 2),
        ({"cohort": 1, "gpu": True, "slots": 1}, 6),
        ({"cohort": 1, "gpu": True, "slots": 1, "trials_per_gpu": 4}, 4),
    ],
)
def test_how_many_are_under_way(fields, at_once):
    assert cutter(**fields).at_once(cut(MIXED, **fields)) == at_once


@pytest.mark.parametrize(("trials", "cohorts"), [(32, 1), (33, 2), (128, 4), (129, 8), (256, 8), (257, 12)])
def test_many_cohorts_come_in_multiples_of_four(trials, cohorts):
    grid = {"model": "mlp6", "seed": list(range(trials))}
    assert len(cut(SweepSpec(experiment="test", grid=grid).trials(), gpu=True)) == cohorts


def test_the_largest_unit_says_how_many_are_under_way():
    assert cutter(gpu=True, cohort=1).at_once([MIXED[:1], MIXED[:5], MIXED[:2]]) == 2 * 5


def test_a_cohort_is_whole_however_few_of_it_are_missing():
    whole = cut(MIXED, cohort=4)
    assert cut(MIXED, MIXED[:1], cohort=4) == [unit for unit in whole if MIXED[0] in unit]
    assert cut(MIXED, [], cohort=4) == []


@pytest.mark.parametrize(
    ("fields", "sizes"),
    [
        ({"trials_per_gpu": 1}, [1, 1, 2, 2, 3, 3]),
        ({"trials_per_gpu": "auto"}, [1, 1, 2, 2, 3, 3]),  # on a CPU
        ({"trials_per_gpu": "auto", "gpu": True}, [3] * 4),  # each network for itself, on both GPUs
        ({"trials_per_gpu": "auto", "gpu": True, "slots": 1}, [6] * 2),
        ({"trials_per_gpu": "auto", "gpu": True, "slots": 100}, [1] * 12),
        ({"trials_per_gpu": 2}, [1] * 4 + [2] * 4),  # as equal as can be on two slots: 4 units of 6 trials
        ({"trials_per_gpu": 2, "slots": 1}, [6] * 2),  # one that ends makes room for the next
        ({"trials_per_gpu": "auto", "gpu": True, "workers": 2}, [1] * 12),
    ],
)
def test_interleaved_trials_leave_no_slot_idle(fields, sizes):
    found = cut(MIXED, cohort=1, **fields)
    assert sorted(c.trial_id for unit in found for c in unit) == sorted(c.trial_id for c in MIXED)
    assert sorted(map(len, found)) == sizes
    assert all(len({c.model for c in unit}) == 1 for unit in found)


def test_trials_of_one_network_are_interleaved_whatever_their_recipe():
    grid = {"dataset": "cifar100", "model": "alexnet", "augment": [True, False], "inputs": ["standardized", "unit"]}
    trials = SweepSpec(experiment="test", grid=grid | {"epochs": [2, 3]}).trials()
    assert cut(trials, gpu=True, slots=1) == [trials]
    mixed = SweepSpec(experiment="test", grid=grid | {"precision": ["fp32", "tf32"]}).trials()
    assert sorted(map(len, cut(mixed, gpu=True, slots=1))) == [4, 4], "one process has one way to round"


def test_of_interleaved_trials_only_those_that_are_missing_are_in_a_unit():
    missing = MIXED[1:8:2]  # of each network two
    assert cut(MIXED, missing, cohort=1, gpu=True, slots=1) == [missing[::2], missing[1::2]]


@pytest.mark.parametrize(
    ("fields", "cohort", "stacked"),
    [
        ({"model": "mlp6"}, "auto", True),
        ({"model": "mlp9"}, "auto", True),
        ({"model": "mlp10"}, "auto", False),
        ({"model": "mlp6", "epochs": 300}, "auto", True),
        ({"model": "mlp6", "epochs": 301}, "auto", False),  # too much would be lost if it were killed
        ({"model": "mlp6", "width": 2.0}, "auto", False),  # out of the cache
        ({"model": "mlp6", "width": 2.0}, 2, True),
        ({"model": "mlp6"}, 1, False),
        ({"model": "mlp6", "dataset": "cifar10"}, "auto", False),  # long: it needs checkpoints
        ({"model": "alexnet", "dataset": "cifar10"}, "auto", False),
        ({"model": "mine:net"}, "auto", False),  # it may be of any kind
        ({"model": "mine:net"}, 8, False),
    ],
)
def test_what_is_stacked(fields, cohort, stacked):
    assert is_stacked(TrialConfig(**fields), cohort) is stacked


def test_short_trials_come_several_at_a_time_and_fewer_and_fewer_towards_the_end():
    trials = load_spec("digits").trials()
    for slots, largest in ((1, 8), (2, 8), (20, 8), (50, 3), (200, 1)):
        found = cut(trials, slots=slots)
        assert [config for unit in found for config in unit] == trials
        sizes = [len(unit) for unit in found]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] == largest
        assert set(sizes[1 - slots :]) == {1} or slots == 1


@pytest.mark.parametrize("fields", [{"dataset": "cifar10"}, {"epochs": 3000}, {"epochs": [2, 3000]}])
def test_longer_trials_are_units_of_their_own(fields):
    trials = SweepSpec(experiment="test", grid={"model": "mlp1", "seed": [0, 1, 2]} | fields).trials()
    assert cut(trials, slots=1) == [[config] for config in trials]


@pytest.mark.parametrize("cohort", ["auto", 1, 4])
def test_without_a_gpu_cohorts_are_made_for_those_who_ask_for_them(cohort):
    asked = SweepJob(experiment="test", store="/nowhere", cohort=cohort)
    assert alone_on_cpus(asked, gpu=False).cohort == (1 if cohort == "auto" else cohort)
    assert alone_on_cpus(asked, gpu=True) == asked


def test_who_hands_out_trials_needs_no_torch():
    code = "import sys, tune.ray_executor, tune.search, tune.tolerance, tune.recorder, tune.sweep\n"
    code += "from tune.spec import load_spec\nfrom tune.job import SweepJob\n"
    code += "from tune.cutting import UnitCutter, alone_on_cpus\n"
    code += "job = alone_on_cpus(SweepJob(experiment='test', store='/nowhere'), gpu=False)\n"
    code += (
        "cutter = UnitCutter(job=job, gpu=False, slots=2)\ncutter.at_once(cutter.cut(load_spec('digits').trials()))\n"
    )
    code += "cutter = UnitCutter(job=SweepJob(experiment='test', store='/nowhere'), gpu=True, slots=2)\n"
    code += "cutter.at_once(cutter.cut(load_spec('paper-cifar100-alexnet').trials()))\n"
    code += "assert 'torch' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("fields", "trials", "expected"),
    [
        ({"device": "cpu"}, [{}, {"epochs": 300}], True),
        ({"device": "cpu"}, [{}, {"epochs": 301}], False),  # an hour's trial is not to wait for the next
        ({"device": "cpu"}, [{"dataset": "cifar10"}], False),
        ({"device": "cpu", "trials_per_gpu": 2}, [{}], False),  # side by side
        ({"device": "cuda"}, [{}], False),
        ({"device": "cuda", "trials_per_gpu": 1}, [{}], True),
        ({"device": "cuda", "trials_per_gpu": 1}, [{"model": "alexnet", "dataset": "cifar10"}], False),
    ],
)
def test_only_short_trials_that_take_turns_may_wait_for_one_another(fields, trials, expected):
    job = SweepJob(experiment="test", store="/nowhere", **fields)
    assert are_in_turn([TrialConfig(**each) for each in trials], job) is expected
