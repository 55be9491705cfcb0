"""What a recorder stores, and whom it tells."""

import threading

import pytest

from gcsr import TrialConfig
from tests.benchmarks.scaling import outcome
from tests.tune.stores import ended
from tune.endings import WorkFailedError, resumable
from tune.events import Pulse
from tune.job import Outcome
from tune.recorder import Recorder
from tune.schema import failed_row
from tune.store import Store

CONFIGS = [TrialConfig(model="mlp2", mode="baseline", lam=1e-3, seed=seed) for seed in range(40)]


class Heard:
    """An observer that looks into the store when it is told."""

    def __init__(self, store):
        self.store, self.calls, self.ending = store, [], "not yet"
        self._busy = threading.Lock()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.ending = kind

    def ended(self, outcome):
        assert self._busy.acquire(blocking=False), "two calls at once"
        trial_id = outcome.row["trial_id"]
        assert self.store.read_bytes(f"trials/{trial_id}.parquet")
        self.calls.append(trial_id)
        self._busy.release()

    def noticed(self, event):
        self.calls.append(event.name)


class Far(Store):
    """A folder that is written like an object store: many at once. Every two writes of rows wait for each other."""

    def __init__(self, location):
        super().__init__(location)
        self.is_local = False
        self.meeting = threading.Barrier(2, timeout=20)

    def write_trial(self, row, epochs):
        self.meeting.wait()
        super().write_trial(row, epochs)


class Slow(Store):
    """Writes nothing before it may; breaks when it is told to."""

    def __init__(self, location):
        super().__init__(location)
        self.open, self.broken, self.tried = threading.Event(), False, 0

    def write_trial(self, row, epochs):
        assert self.open.wait(20)
        self.tried += 1
        if self.broken:
            raise OSError(28, "No space left on device")
        super().write_trial(row, epochs)


def test_every_outcome_is_stored_and_told_once_and_counted(tmp_path):
    store = Store(str(tmp_path / "out"))
    heard = Heard(store)
    failed = Outcome(failed_row(CONFIGS[2], "test", "ValueError: no"), [])
    with Recorder(store, {CONFIGS[3].trial_id}, [heard]) as recorder:
        for one in (outcome(CONFIGS[0]), outcome(CONFIGS[1]), failed, outcome(CONFIGS[3])):
            recorder.ended(one)
        recorder.wait()
        recorder.noticed(Pulse(running=1, nodes=1))
    assert heard.calls == [CONFIGS[k].trial_id for k in (0, 1, 2)] + ["pulse"]
    assert recorder.statuses == {"finished": 2, "failed": 1}
    assert recorder.failures == [f"{CONFIGS[2].trial_id}: ValueError: no"]
    assert heard.ending is None
    assert len(store.read_trials().table) == 3
    assert store.epochs().count_rows() == 2 * 300


def test_the_run_does_not_wait_for_the_disk_and_the_block_ends_when_all_is_stored(tmp_path):
    store = Slow(str(tmp_path / "out"))
    with Recorder(store, set(), []) as recorder:
        for config in CONFIGS:
            recorder.ended(outcome(config))
        assert len(store.read_trials().table) == 0
        store.open.set()
    assert len(store.read_trials().table) == len(CONFIGS)


def test_an_object_store_is_sent_many_at_once(tmp_path):
    store = Far(str(tmp_path / "out"))
    heard = Heard(store)
    with Recorder(store, set(), [heard]) as recorder:
        for config in CONFIGS:
            recorder.ended(outcome(config))
    assert sorted(heard.calls) == sorted(config.trial_id for config in CONFIGS)


@pytest.mark.parametrize("how", ["at the next call", "at the end"])
def test_what_cannot_be_stored_ends_the_run(tmp_path, how):
    store = Slow(str(tmp_path / "out"))
    store.broken = True
    heard = Heard(store)
    with pytest.raises(OSError, match="No space left"), Recorder(store, set(), [heard]) as recorder:
        recorder.ended(outcome(CONFIGS[0]))
        recorder.ended(outcome(CONFIGS[1]))
        store.open.set()
        if how == "at the next call":
            with pytest.raises(OSError, match="No space left"):
                recorder.wait()
            recorder.noticed(Pulse(running=1, nodes=1))
            pytest.fail("went on")
    assert store.tried == 1, "a store that is gone would be waited for once an outcome"
    assert heard.calls == []
    assert heard.ending is OSError


def test_an_interrupted_run_keeps_what_it_was_given(tmp_path):
    store = Store(str(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt), Recorder(store, set(), []) as recorder:
        for config in CONFIGS:
            recorder.ended(outcome(config))
        raise KeyboardInterrupt
    assert ended(store) == {config.trial_id for config in CONFIGS}


def test_an_outcome_is_short_where_it_is_printed():
    assert len(repr(outcome(CONFIGS[0]))) < 80


@pytest.mark.parametrize("made_anew", [False, True])
def test_a_folder_that_is_deleted_or_renamed_ends_the_run(tmp_path, made_anew):
    out, aside = tmp_path / "out", tmp_path / "aside"
    store = Store(str(out))
    with (
        pytest.raises(WorkFailedError, match=r"out' was deleted or renamed while .* is run again with: ") as ending,
        resumable(True),
        store.exclusive(),
        Recorder(store, set(), []) as recorder,
    ):
        recorder.ended(outcome(CONFIGS[0]))
        recorder.wait()
        out.rename(aside)
        if made_anew:
            out.mkdir()
        recorder.ended(outcome(CONFIGS[1]))
    assert "is stored" not in str(ending.value), "where somebody resumes, nothing is"
    assert len(ended(Store(str(aside)))) == 1
    assert out.exists() == made_anew, "nothing was written under its name"
    assert not made_anew or not any(out.iterdir())
    with store.exclusive(), Recorder(store, set(), []) as recorder:
        recorder.ended(outcome(CONFIGS[1]))
