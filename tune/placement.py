"""What a trial takes of a cluster, and how many fit at once: decided before anything starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gcsr import InvalidInputError
from tune.trial import SweepJob

__all__ = ["TrialPlan", "plan_trials"]


@dataclass(frozen=True, slots=True)
class TrialPlan:
    """How trials are placed.

    Attributes:
        resources: of one worker of a trial, in Ray's names (``CPU``, ``GPU``).
        slots: how many whole trials the cluster can hold at once.
    """

    resources: dict[str, float]
    slots: int


def plan_trials(job: SweepJob, nodes: Sequence[Mapping[str, float]]) -> TrialPlan:
    """Place trials of ``job.workers`` workers on a cluster.

    A worker takes ``job.threads`` cores, and one GPU where the job may use GPUs and the cluster has any (NCCL
    refuses two ranks on one GPU). Its workers may lie on several nodes; each worker lies on one.

    Args:
        job: the sweep's job.
        nodes: resources of each node that is alive.

    Raises:
        InvalidInputError: the cluster, empty, could not hold one trial.
    """
    if job.workers > 1 and job.cohort not in ("auto", 1):
        raise InvalidInputError(f"cohort: {job.cohort} is not allowed with {job.workers} workers a trial; expected 1")
    resources: dict[str, float] = {"CPU": job.threads}
    if job.device.startswith("cuda") or (job.device == "auto" and any(node.get("GPU", 0) >= 1 for node in nodes)):
        resources["GPU"] = 1
    for kind, needed in resources.items():
        largest = max((node.get(kind, 0) for node in nodes), default=0)
        if needed > largest:
            raise InvalidInputError(
                f"{'threads' if kind == 'CPU' else 'device'}: a trial that needs {needed:g} {kind} a worker can never "
                f"run; expected at most {largest:g}, the largest node's"
            )
    places = sum(min(int(node.get(kind, 0) // needed) for kind, needed in resources.items()) for node in nodes)
    if job.workers > places:
        raise InvalidInputError(
            f"workers: {job.workers} workers of {_described(resources)} can never run; expected at most {places}, "
            "as many as the cluster holds"
        )
    return TrialPlan(resources, places // job.workers)


def _described(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {kind}" for kind, amount in resources.items())
