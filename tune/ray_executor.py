"""The Ray executor: trials through Ray Tune, on a local Ray that it starts or on a running cluster."""

import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from gcsr import InvalidInputError, TrialConfig
from tune.trial import Outcome, SweepJob

# Ray reads these when it is imported or started, and its workers inherit them.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # our store is the log; saves half the overhead
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative data paths mean what they say
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its banner ignores verbose=0
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C must reach us, not be swallowed

import ray
from ray import tune as ray_tune

from tune.schema import failed_row
from tune.trainable import JOB, OUTCOME, TRIAL, SweepTrainable

__all__ = ["run_on_ray"]

_LOST_WORKER_RETRIES = 3


class _Relay(ray_tune.Callback):  # type: ignore[misc]
    """Hands what Tune tells about its trials on to the sweep."""

    def __init__(self, job: SweepJob, on_start: Callable[[str], None], on_end: Callable[[Outcome], None]) -> None:
        self._job, self._on_start, self._on_end = job, on_start, on_end

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks into its experiment state, which we never restore: the store is the truth.
        return {"_job": self._job, "_on_start": None, "_on_end": None}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._on_start(_config(trial).trial_id)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._on_end(result[OUTCOME])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        text = f"its worker was lost {_LOST_WORKER_RETRIES + 1} times; see Ray's logs"
        self._on_end(Outcome(failed_row(_config(trial), self._job.experiment, text), []))


def _config(trial: Any) -> TrialConfig:
    return TrialConfig(**json.loads(trial.config[TRIAL]))


def run_on_ray(
    trials: Sequence[TrialConfig],
    job: SweepJob,
    *,
    address: str | None,
    max_concurrent: int | None,
    on_start: Callable[[str], None],
    on_end: Callable[[Outcome], None],
) -> None:
    """Run all trials through Ray Tune.

    Args:
        trials: what to run, in this order.
        job: what they share.
        address: a running cluster's; None starts a Ray of our own on this machine and stops it at the end.
        max_concurrent: at most so many trials at once; None for as many as there are cores (or GPUs).
        on_start: called with a trial's id when it starts (again, if its worker was lost).
        on_end: called with its outcome.

    Raises:
        InvalidInputError: the cluster cannot be reached, or could never run a trial.
    """
    _connect(address)
    state = tempfile.mkdtemp(prefix="gcsr-tune-")
    try:
        resources = _trial_resources(job)
        space = {
            TRIAL: ray_tune.grid_search([json.dumps(config.to_dict()) for config in trials]),
            JOB: job,
        }
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(SweepTrainable, resources),
            param_space=space,
            tune_config=ray_tune.TuneConfig(reuse_actors=True, max_concurrent_trials=max_concurrent),
            run_config=ray_tune.RunConfig(
                name=job.experiment,
                storage_path=state,
                callbacks=[_Relay(job, on_start, on_end)],
                # A trial's own fault comes back as a result: only a lost worker is an error to Tune.
                failure_config=ray_tune.FailureConfig(max_failures=_LOST_WORKER_RETRIES),
                checkpoint_config=ray_tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                verbose=0,
            ),
        )
        tuner.fit()
    finally:
        shutil.rmtree(state, ignore_errors=True)
        ray.shutdown()


def _connect(address: str | None) -> None:
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    for name in ("ray", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Worker processes import `gcsr` and `tune` as this process does, also from a checkout that is not installed.
    if address is None:
        ray.init(include_dashboard=False, **quiet)
        return
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InvalidInputError(f"address: {address!r} cannot be reached: {reason}") from None


def _trial_resources(job: SweepJob) -> dict[str, float]:
    """Resources of one trial: ``threads`` cores, and a GPU where the cluster has any and the job may use it."""
    there = ray.cluster_resources()
    resources: dict[str, float] = {"cpu": job.threads}
    if job.device.startswith("cuda") or (job.device == "auto" and there.get("GPU", 0) >= 1):
        resources["gpu"] = 1
    biggest = {
        kind: max((node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]), default=0)
        for kind in ("CPU", "GPU")
    }
    for kind in ("CPU", "GPU"):
        if resources.get(kind.lower(), 0) > biggest[kind]:
            raise InvalidInputError(
                f"{'threads' if kind == 'CPU' else 'device'}: a trial that needs {resources[kind.lower()]:g} {kind} "
                f"can never run; expected at most {biggest[kind]:g}, the largest node's"
            )
    return resources
