"""What a running cluster has, what it may grow to, and waiting for it to grow large enough."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.util.placement_group import placement_group, remove_placement_group

from tune.job import SweepJob
from tune.placement import Resources, TooSmallError, TrialPlan, described, plan_trials, worker_resources
from tune.terminal import complain

__all__ = ["Launched", "alive_nodes", "plan_on_cluster"]

_GROW_SECONDS = 1800.0  # wait so long for a cluster that grows by itself
_JOIN_SECONDS = 60.0  # … and so long for nodes that its launcher keeps up anyway
_SAY_EVERY = 20.0


@dataclass(frozen=True, slots=True)
class Launched:
    """What Ray's cluster launcher was told of the cluster.

    Attributes:
        least: nodes that it keeps up, the head among them.
        largest: resources of every node at its largest; None if the launcher does not know them (on-premise).
        grows: whether nodes come and go by need.
    """

    least: int
    largest: list[Resources] | None
    grows: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Launched":
        """From the launcher's file.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is not such a file.
        """
        types, head = config["available_node_types"], config["head_node_type"]
        left = int(config["max_workers"])
        nodes, least = [types[head]["resources"]], 1
        for name, kind in types.items():
            most = int(kind.get("max_workers", 0 if name == head else left))
            count = min(left, most)
            nodes += [kind["resources"]] * count
            left -= count
            least += min(count, int(kind.get("min_workers", 0)))
        known = all(node.get("CPU") is not None for node in nodes)
        return cls(least, nodes if known else None, len(nodes) > least)


def alive_nodes() -> list[dict[str, Any]]:
    """The nodes of the connected cluster, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def plan_on_cluster(job: SweepJob, wait: float | None, say: Callable[[str], None] | None = None) -> TrialPlan:
    """Place the job's trials on the connected cluster, waiting for one that is too small yet.

    Args:
        job: the sweep's job.
        wait: seconds at most; None for half an hour if the cluster grows by itself, a minute for nodes that are
            coming up, and not at all otherwise.
        say: called with a line that says what is waited for; stderr by default.

    Returns:
        The plan; its slots are those of the cluster at its largest, as far as that is known.

    Raises:
        TooSmallError: the cluster does not hold one trial, now or after waiting.
    """
    launched = _launched()
    largest = launched.largest if launched else None
    at_most = None if largest is None else plan_trials(job, largest)  # refuses at once what it could never hold
    grows = (launched is not None and launched.grows) or _kuberay_grows()
    waiting = _Waiting(say or _to_stderr)
    if launched is not None:
        waiting.for_nodes(launched.least, _JOIN_SECONDS if wait is None else min(wait, _JOIN_SECONDS))
    plan = waiting.for_room(job, largest or [], wait if wait is not None else _GROW_SECONDS if grows else 0.0)
    return plan if at_most is None or at_most.resources != plan.resources else at_most


class _Waiting:
    """Waits, and says every now and then what for."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._said = say, -_SAY_EVERY
        self._began = time.monotonic()

    def for_nodes(self, count: int, patience: float) -> None:
        """Until so many nodes are up, or patience ends: they may be broken, and the others can work."""
        while (up := len(alive_nodes())) < count and (waited := self._waited()) < patience:
            self._line(f"{up} of {count} nodes are up", waited, patience)
            time.sleep(1.0)

    def for_room(self, job: SweepJob, largest: list[Resources], patience: float) -> TrialPlan:
        """Until one trial fits."""
        demand = None
        try:
            while True:
                nodes = [node["Resources"] for node in alive_nodes()]
                waited = self._waited()
                # On a cluster whose GPUs are still to come a trial would run on the head's cores.
                early = bool(largest) and worker_resources(job, nodes) != worker_resources(job, largest)
                try:
                    plan = plan_trials(job, nodes)
                    if not early or waited >= patience:
                        return plan
                except TooSmallError as error:
                    if waited >= patience:
                        raise TooSmallError(f"{error} (waited {waited:.0f} s)" if patience else str(error)) from None
                needed = worker_resources(job, [*nodes, *largest])
                if demand is None:  # makes an autoscaler start what it takes, and shows in ray status
                    demand = placement_group([needed] * job.workers, strategy="PACK")
                trial = described(needed) if job.workers == 1 else f"{job.workers} workers of {described(needed)}"
                there = ", ".join(sorted(_node_text(node) for node in nodes)) or "no node"
                self._line(f"a trial takes {trial}; there is {there}", waited, patience)
                time.sleep(min(1.0, max(0.05, patience - waited)))
        finally:
            if demand is not None:
                remove_placement_group(demand)

    def _waited(self) -> float:
        return time.monotonic() - self._began

    def _line(self, text: str, waited: float, patience: float) -> None:
        if waited - self._said >= _SAY_EVERY:
            self._said = waited
            self._say(f"waiting for the cluster: {text}; {waited:.0f} of at most {patience:.0f} s")


def _node_text(node: Resources) -> str:
    return "a node of " + described(
        {kind: node.get(kind, 0) for kind in ("CPU", "GPU") if kind == "CPU" or kind in node}
    )


def _to_stderr(line: str) -> None:
    complain(f"gcsr: {line}")


def _kuberay_grows() -> bool:
    """Whether KubeRay's autoscaler serves this pod's cluster: it is a container of its own, so Ray runs no monitor."""
    return "--no-monitor" in os.environ.get("KUBERAY_GEN_RAY_START_CMD", "")


def _launched() -> Launched | None:
    """What the launcher was told, if this is the head of a cluster that it started: it leaves its file there."""
    if ray.get_runtime_context().gcs_address.rpartition(":")[0] != ray.util.get_node_ip_address():
        return None
    try:
        return Launched.of(yaml.safe_load((Path.home() / "ray_bootstrap_config.yaml").read_text()))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        return None
