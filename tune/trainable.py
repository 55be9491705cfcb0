"""`gcsr` trials as a Ray Tune trainable, in actors that are reused from trial to trial."""

import json
from typing import Any

import torch
from ray import tune as ray_tune

from gcsr import TrialConfig
from tune.trial import SweepJob, run_trial

__all__ = ["JOB", "OUTCOME", "PLAN", "TRIAL", "SweepTrainable"]

TRIAL = "trial"  # key of a Tune config: the trial's fields, as JSON
JOB = "job"  # key of a Tune config: the SweepJob
PLAN = "plan"  # key of a Tune config: the TrialPlan
OUTCOME = "outcome"  # key of a Tune result: the Outcome


class SweepTrainable(ray_tune.Trainable):  # type: ignore[misc]
    """One `step` is one whole trial: a digits trial takes about a second, a fresh actor that imports torch several.

    The trial keeps its own checkpoints in the store, so that it goes on where it was after its actor died, also
    under another driver; Tune's checkpoints are not used.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._trial = TrialConfig(**json.loads(new_config[TRIAL]))
        self._job: SweepJob = new_config[JOB]
        torch.set_num_threads(self._job.threads)
        return True

    def step(self) -> dict[str, Any]:
        return {OUTCOME: run_trial(self._trial, self._job), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        return None

    def load_checkpoint(self, checkpoint: Any) -> None:
        return None
