"""What the sweep hears of Tune's loop."""

import types

import pytest

from gcsr import TrialConfig
from tune.cutting import UnitCutter
from tune.events import Pulse
from tune.job import SweepJob
from tune.relay import NodeWatch, Relay, StopWhenOver
from tune.trainable import OUTCOME, UNIT, unit_text

UNITS = [[TrialConfig(seed=seed) for seed in range(number)] for number in (8, 3, 2)]


@pytest.mark.parametrize(
    ("fields", "gpu", "running"),
    [({"cohort": 1}, False, 2), ({"cohort": 8}, True, 11), ({"cohort": 1, "trials_per_gpu": 4}, True, 7)],
)
def test_the_pulse_counts_trials_that_are_under_way_and_none_that_wait_in_a_unit(fields, gpu, running, monkeypatch):
    monkeypatch.setattr("tune.relay.alive_nodes", lambda: [{"NodeID": "a", "NodeManagerAddress": "10.0.0.1"}])
    cutter = UnitCutter(job=SweepJob(experiment="test", store="/nowhere", **fields), gpu=gpu, slots=2)
    checks = types.SimpleNamespace(start=lambda node: None, finished=list)
    heard = []
    listener = types.SimpleNamespace(noticed=heard.append)
    trials = [
        types.SimpleNamespace(status=status, config={UNIT: unit_text(unit)})
        for status, unit in zip(("RUNNING", "RUNNING", "PENDING"), UNITS, strict=True)
    ]
    NodeWatch([], checks, None, cutter.under_way).look(trials, listener)
    assert heard[-1] == Pulse(running=running, nodes=1)


def test_once_time_is_over_and_nobody_is_at_work_no_unit_is_begun_to_find_that_out():
    relay = Relay(types.SimpleNamespace(ended=lambda outcome: None), None, list)
    stop = StopWhenOver(relay)
    a, b, c = (types.SimpleNamespace(trial_id=name) for name in "abc")
    for trial in (a, b):
        relay.on_trial_start(0, [], trial)
    relay.on_trial_result(0, [], a, {OUTCOME: []})  # the deadline has overtaken it
    relay.on_trial_complete(0, [], a)
    relay.on_trial_start(0, [], c)
    assert not stop.stop_all(), "b is in its last epoch"
    relay.on_trial_result(0, [], b, {OUTCOME: [None]})
    assert not stop.stop_all()
    relay.on_trial_complete(0, [], b)
    assert stop.stop_all()
