"""What a trial takes of a cluster, and how many fit at once: decided before anything starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gcsr import InvalidInputError
from tune.job import SweepJob

__all__ = ["Resources", "TooSmallError", "TrialPlan", "described", "places", "plan_trials", "worker_resources"]

Resources = Mapping[str, float]


class TooSmallError(InvalidInputError):
    """The cluster, were it empty, could not hold one trial."""


@dataclass(frozen=True, slots=True)
class TrialPlan:
    """How trials are placed.

    Attributes:
        resources: of one worker of a trial, in Ray's names (``CPU``, ``GPU``).
        slots: how many whole trials the cluster can hold at once.
    """

    resources: dict[str, float]
    slots: int


def worker_resources(job: SweepJob, nodes: Sequence[Resources]) -> dict[str, float]:
    """What one worker of a trial takes: ``job.threads`` cores, and a GPU (or a share of one) if there are any.

    Args:
        job: the sweep's job.
        nodes: resources of the nodes that are there, or that could be.

    Raises:
        InvalidInputError: what the job asks for excludes itself.
    """
    for name in ("cohort", "trials_per_gpu"):
        if job.workers > 1 and getattr(job, name) not in ("auto", 1):
            raise InvalidInputError(
                f"{name}: {getattr(job, name)} is not allowed with {job.workers} workers a trial; expected 1"
            )
    if job.workers > 1 and job.gpu_share < 1:
        raise InvalidInputError(
            f"gpu_share: {job.gpu_share:g} is not allowed with {job.workers} workers a trial; expected 1, as NCCL "
            "refuses two workers of a trial on one GPU"
        )
    resources: dict[str, float] = {"CPU": job.threads}
    if job.device.startswith("cuda") or (job.device == "auto" and any(node.get("GPU", 0) >= 1 for node in nodes)):
        resources["GPU"] = job.gpu_share
    return resources


def plan_trials(job: SweepJob, nodes: Sequence[Resources]) -> TrialPlan:
    """Place trials of ``job.workers`` workers on a cluster.

    A trial's workers may lie on several nodes; each worker lies on one.

    Args:
        job: the sweep's job.
        nodes: resources of each node.

    Raises:
        TooSmallError: these nodes could not hold one trial.
        InvalidInputError: what the job asks for excludes itself.
    """
    resources = worker_resources(job, nodes)
    for kind, needed in resources.items():
        largest = max((node.get(kind, 0) for node in nodes), default=0)
        if needed > largest:
            raise TooSmallError(
                f"{'threads' if kind == 'CPU' else 'device'}: a trial that needs {needed:g} {kind} a worker can never "
                f"run; expected at most {largest:g}, the largest node's"
            )
    workers = sum(places(node, resources) for node in nodes)
    if job.workers > workers:
        raise TooSmallError(
            f"workers: {job.workers} workers of {described(resources)} can never run; expected at most {workers}, "
            "as many as the cluster holds"
        )
    return TrialPlan(resources, workers // job.workers)


def places(node: Resources, needed: Resources) -> int:
    """How many workers of these resources a node holds."""
    return min(_times(node.get(kind, 0), amount) for kind, amount in needed.items())


def _times(there: float, needed: float) -> int:
    """How often ``needed`` fits; a share of a GPU never spans two of them."""
    return int(there) * int(1 / needed + 1e-9) if needed < 1 else int(there // needed)


def described(resources: Resources) -> str:
    """Resources in words."""
    return " and ".join(f"{amount:g} {kind}" for kind, amount in resources.items())
