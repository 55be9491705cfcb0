"""`gcsr` trials as a Ray Tune trainable, in actors that are reused from trial to trial.

The driver imports this, too, and needs no torch: what trains is imported where it trains.
"""

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ray import tune as ray_tune

from gcsr import TrialConfig
from tune.cutting import are_in_turn
from tune.imports import import_for_good
from tune.job import Outcome, SweepJob

__all__ = ["JOB", "OUTCOME", "PLAN", "UNIT", "SweepTrainable", "trials_of", "unit_text"]

UNIT = "unit"  # key of a Tune config: the fields of each trial of the unit, as JSON
JOB = "job"  # key of a Tune config: the SweepJob
PLAN = "plan"  # key of a Tune config: the TrialPlan
OUTCOME = "outcome"  # key of a Tune result: the unit's Outcomes; none if the deadline overtook what is left of it

_STEP_SECONDS = 1.0  # of short trials in turn; for each step Tune takes some 10 ms of the driver's time


def unit_text(unit: Sequence[TrialConfig]) -> str:
    """A unit as a Tune config holds it."""
    return json.dumps([config.to_dict() for config in unit])


def trials_of(config: dict[str, Any]) -> list[TrialConfig]:
    """The trials of a Tune config's unit."""
    return [TrialConfig(**fields) for fields in json.loads(config[UNIT])]


class SweepTrainable(ray_tune.Trainable):  # type: ignore[misc]
    """Trains units in an actor that is reused: a digits trial takes a second, a fresh actor that imports torch several.

    One `step` goes on until a trial ends, or a cohort; where short trials take turns, until a second has passed.

    The trial keeps its own checkpoints in the store, so that it goes on where it was after its actor died, also
    under another driver; Tune's checkpoints are not used.
    """

    def setup(self, config: dict[str, Any]) -> None:
        import_for_good("torch", "tune.units")
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        import torch

        unit = trials_of(new_config)
        job: SweepJob = new_config[JOB]
        torch.set_num_threads(job.threads)
        if job.gpu_share < 1 and torch.cuda.is_available():
            # Ray only counts shares; without this one trial's memory would be another's failure.
            torch.cuda.set_per_process_memory_fraction(job.gpu_share)
        self._outcomes = _run(unit, job)
        self._seconds = _STEP_SECONDS if are_in_turn(unit, job) else 0.0
        self._left = len(unit)
        return True

    def step(self) -> dict[str, Any]:
        ended: list[Outcome] = []  # none: the deadline overtook those that are left
        began = time.monotonic()
        for outcomes in self._outcomes:
            ended += outcomes
            if time.monotonic() - began >= self._seconds:
                break
        self._left -= len(ended)
        return {OUTCOME: ended, "done": self._left == 0 or not ended}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        return None

    def load_checkpoint(self, checkpoint: Any) -> None:
        return None


def _run(unit: Sequence[TrialConfig], job: SweepJob) -> Iterator[list[Outcome]]:
    from tune.trial import check_digests
    from tune.units import run_unit

    check_digests(unit, job)  # what it raises Tune takes for a lost worker, and tries elsewhere
    yield from run_unit(unit, job)
