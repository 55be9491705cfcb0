"""A trial over several workers: Ray Train inside a Tune trial.

The driver imports this, too, and needs no torch: what trains is imported where it trains.
"""

import os
from typing import Any

from ray import train as ray_train
from ray import tune as ray_tune
from ray.train import WorkerGroupError

from gcsr.errors import OutOfTimeError
from tune.job import Outcome, SweepJob
from tune.placement import TrialPlan
from tune.trainable import JOB, OUTCOME, PLAN, UNIT, trials_of

__all__ = ["train_with_workers"]


def train_with_workers(config: dict[str, Any]) -> None:
    """Tune's side of a trial: start the workers, wait for them, report the outcome of rank 0.

    A lost worker ends the trial with an exception, which Tune answers by starting it again; it then goes on from
    the checkpoint that rank 0 keeps in the store.
    """
    from ray.train.torch import TorchConfig, TorchTrainer

    from gcsr.parallel import backend
    from tune.trial import failed_outcome, is_machines_fault

    job: SweepJob = config[JOB]
    plan: TrialPlan = config[PLAN]
    gpu = "GPU" in plan.resources
    trainer = TorchTrainer(
        _work,
        train_loop_config={UNIT: config[UNIT], JOB: job},
        torch_config=TorchConfig(backend=backend("cuda" if gpu else "cpu")),
        scaling_config=ray_train.ScalingConfig(
            num_workers=job.workers,
            use_gpu=gpu,
            resources_per_worker=plan.resources,
            placement_strategy="PACK",
        ),
        run_config=ray_train.RunConfig(storage_path=os.path.join(ray_tune.get_context().get_trial_dir(), "train")),
    )
    (trial,) = trials_of(config)
    outcome: Outcome | None
    try:
        outcome = trainer.fit().return_value
    except WorkerGroupError as error:
        causes = [_raised_by_trial(failure) for failure in error.worker_failures.values()]
        own = [cause for cause in causes if cause is not None and not is_machines_fault(cause)]
        if not own or len(own) < len(causes):
            raise  # a worker or its node is gone, or cannot serve
        outcome = failed_outcome(trial, job, own[0])
    ray_tune.report({OUTCOME: [] if outcome is None else [outcome]})


def _raised_by_trial(failure: BaseException) -> BaseException | None:
    """What our code raised in a worker; None if the worker itself failed."""
    raised = getattr(failure, "_base_exc", failure)  # Ray Train wraps it in some places, and not in others
    return None if type(raised).__module__.split(".")[0] == "ray" else raised


def _work(config: dict[str, Any]) -> Outcome | None:
    import torch
    import torch.distributed as dist
    from ray.train.torch import get_device

    from gcsr.interleaving import finished
    from gcsr.randomness import undisturbed
    from tune.trial import check_digests, trial_steps

    job: SweepJob = config[JOB]
    torch.set_num_threads(job.threads)
    (trial,) = trials_of(config)
    check_digests([trial], job)
    device = get_device()
    try:
        with undisturbed(device, trial.precision):
            return finished(trial_steps(trial, job, device, dist.group.WORLD))
    except OutOfTimeError:
        return None
