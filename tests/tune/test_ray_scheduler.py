"""Which waiting trial a free worker gets."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray import tune as ray_tune

from tune.ray_scheduler import SparingScheduler


@pytest.mark.parametrize(
    ("slots", "statuses", "chosen"),
    [
        (2, "RP", 1),
        (2, "RPPP", 1),  # the worker that is free is the only other one: first come, first served
        (4, "RPPPP", 3),  # two workers may be starting, for the two oldest
        (4, "RPP", 2),  # each of the two waiting may have a worker that starts: the younger's has least to lose
        (4, "RRRR", None),
        (1, "PPP", 0),
        (3, "", None),
    ],
)
def test_the_oldest_waiting_trials_are_left_to_the_workers_that_start(slots, statuses, chosen):
    names = {"P": "PENDING", "R": "RUNNING"}
    trials = [SimpleNamespace(trial_id=f"x_{k:05}", status=names[s]) for k, s in enumerate(statuses)]
    controller = SimpleNamespace(get_live_trials=lambda: trials[1::2] + trials[::2])  # in no order, as Tune has them
    found = SparingScheduler(lambda: slots).choose_trial_to_run(controller)
    assert found is (None if chosen is None else trials[chosen])


class Short(ray_tune.Trainable):
    """Trials of 50 ms, on workers of which all but the first take three seconds to start."""

    def setup(self, config):
        try:
            os.close(os.open(Path(config["folder"]) / "first", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            time.sleep(3)

    def reset_config(self, new_config):
        return True

    def step(self):
        time.sleep(0.05)
        return {"worker": os.getpid(), "done": True}

    def save_checkpoint(self, checkpoint_dir):
        return None


@pytest.mark.slow(30)
def test_short_trials_do_not_keep_other_workers_from_starting(tmp_path):
    # "local": a cluster that another process of these tests started must not be joined.
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(Short, {"cpu": 1}),
            param_space={"k": ray_tune.grid_search(list(range(300))), "folder": str(tmp_path)},
            tune_config=ray_tune.TuneConfig(scheduler=SparingScheduler(lambda: 3), reuse_actors=True),
            run_config=ray_tune.RunConfig(storage_path=str(tmp_path), verbose=0),
        )
        workers = {result.metrics["worker"] for result in tuner.fit()}
    finally:
        ray.shutdown()
    assert len(workers) == 3
