"""What the Ray executor makes of lost workers."""

import contextlib
import os
import threading

import psutil
import pytest

from gcsr import TrialConfig
from tests.tune.conftest import title
from tune.cli import main
from tune.job import SweepJob, checkpoint_name
from tune.ray_executor import _Losses
from tune.store import Store


@pytest.mark.parametrize("skew", [-1000, 1000])
def test_a_unit_is_given_up_after_three_workers_without_progress_whatever_the_clock_of_the_store(tmp_path, skew):
    store, losses = Store(str(tmp_path)), _Losses(SweepJob(experiment="test", store=str(tmp_path)))
    unit = [TrialConfig(mode="baseline", lam=1e-3, seed=seed) for seed in range(2)]

    def save(config, seconds):
        name = checkpoint_name(config.trial_id)
        store.write_bytes(name, b"state")
        when = store.modified(name) + skew + seconds
        os.utime(store.path(name), (when, when))

    for seconds in range(4):
        save(unit[seconds % 2], seconds)
        assert not losses.too_many(unit)
    assert not losses.too_many(unit)
    assert losses.too_many(unit)


@contextlib.contextmanager
def every_worker_killed():
    """Kills this process's Ray workers as soon as they train."""
    done = threading.Event()

    def kill():
        while not done.wait(0.1):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "Trainable.train" in title(process):
                        process.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.slow(30)
def test_a_store_that_is_gone_when_a_search_loses_a_worker_ends_it_with_the_line_that_resumes(
    tmp_path, monkeypatch, capsys
):
    def gone(store, name):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Store, "modified", gone)
    arguments = ["search", "digits", "--trials", "2", "--out", str(tmp_path / "out"), "--cohort", "1"]
    for fixed in ("epochs=3000", "mode=ours_orig", "model=mlp6", "regularizer=l2", "seed=0"):
        arguments += ["--set", fixed]
    with every_worker_killed():
        assert main(arguments) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("gcsr: Input/output error; every ended trial is stored; resume with: gcsr")
