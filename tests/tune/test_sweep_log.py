"""The JSON-lines log: what a run appends, what a killed one leaves, and stores that cannot append."""

import json

import pytest

from tests.tune.conftest import make_row
from tune.events import NodeLeft, Pulse
from tune.job import Outcome
from tune.store import Store
from tune.sweep_log import LOG, SweepLog


def lines(store):
    return [json.loads(line) for line in store.read_bytes(LOG).splitlines()]


def run(store, rows, events=()):
    with SweepLog(store, {"experiment": "test", "trials": 2}) as log:
        for row in rows:
            log.ended(Outcome(row, []))
        for event in events:
            log.noticed(event)


@pytest.fixture
def store(tmp_path):
    (tmp_path / "out").mkdir()
    return Store(str(tmp_path / "out"))


def test_every_run_adds_its_lines(store):
    run(store, [make_row(0.5, seed=3, mode="ours", lam=1e-3)], [NodeLeft(node="10.0.0.1", nodes=2)])
    run(store, [make_row(status="failed")], [Pulse(running=1, nodes=1)])
    found = lines(store)
    assert [line["event"] for line in found] == [
        *("started", "trial_ended", "node_left", "ended"),
        *("started", "trial_ended", "ended"),
    ]
    assert all(line["time"].endswith("+00:00") for line in found)
    assert {"status": "finished", "seed": 3, "lam": 1e-3, "test_accuracy": 0.5, "pi": 0.6}.items() <= found[1].items()
    assert found[5]["error"] == "ValueError: on purpose"
    assert found[3] | {"time": ""} == {"time": "", "event": "ended", "how": "done", "statuses": {"finished": 1}}


def test_the_last_line_says_how_a_run_ended(store):
    for error, how in ((KeyboardInterrupt, "interrupted"), (OSError, "stopped")):
        with pytest.raises(error), SweepLog(store, {}):
            raise error
        assert lines(store)[-1]["how"] == how


@pytest.mark.parametrize("left", [b'{"time": "2026', b"", b'{"a": 1}\n', b'{"a": 1}\n{"b'])
def test_half_a_line_of_a_killed_run_is_dropped(store, left):
    store.write_bytes(LOG, left)
    run(store, [])
    assert [line.get("event", "before") for line in lines(store)][-2:] == ["started", "ended"]
    assert len(lines(store)) == 2 + left.count(b"\n")


def test_a_store_that_cannot_append_is_written_anew_but_not_for_every_line(store, monkeypatch):
    run(store, [])
    writes = []
    monkeypatch.setattr(store, "is_local", False)
    monkeypatch.setattr(store, "write_bytes", lambda name, data: writes.append(data))
    run(store, [make_row(seed=seed) for seed in range(20)])
    assert len(writes) == 2, "at its start and at its end"
    assert len(writes[-1].splitlines()) == 2 + 22, "what was there, and this run"


def test_what_happened_last_is_written_while_nothing_else_happens(store, monkeypatch):
    monkeypatch.setattr(store, "is_local", False)
    with SweepLog(store, {}) as log:
        log.noticed(NodeLeft(node="10.0.0.1", nodes=2))
        log.noticed(Pulse(running=1, nodes=2))
        assert [line["event"] for line in lines(store)] == ["started"], "it has just been written"
        log._next = 0.0  # time goes by
        log.noticed(Pulse(running=1, nodes=2))
        assert [line["event"] for line in lines(store)] == ["started", "node_left"]
        log._next = 0.0
        monkeypatch.setattr(store, "write_bytes", lambda name, data: pytest.fail("nothing is new"))
        log.noticed(Pulse(running=1, nodes=2))
        monkeypatch.setattr(store, "write_bytes", lambda name, data: None)


def test_a_log_that_cannot_be_written_ends_nothing(store, capsys, monkeypatch):
    monkeypatch.setattr(store, "is_local", False)

    def full(name, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_bytes", full)
    run(store, [make_row(), make_row(seed=1)])
    err = capsys.readouterr().err
    assert "No space left on device" in err
    assert err.count("\n") == 1
