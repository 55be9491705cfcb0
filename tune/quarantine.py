"""Nodes that cannot serve a sweep are kept from its trials, which Tune places wherever there is room."""

from collections.abc import Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tune.placement import places

__all__ = ["Quarantine"]


class Quarantine:
    """Takes every place that a node has for a worker, by an idle actor each; they end with the connection to Ray.

    Not by placement groups: of those that wait Ray takes any first, and Tune always has some waiting. An actor that is
    bound to a node waits on the node itself, which grants it the place as soon as a trial leaves it.

    Args:
        needed: resources of one worker.
    """

    def __init__(self, needed: Mapping[str, float]) -> None:
        self._needed = needed
        self._taken: dict[str, list[Any]] = {}

    def close(self, node: dict[str, Any]) -> None:
        """Take the node's places: those that are free at once, the others as trials leave them."""

        class Idle:
            """Inside a function, so that Ray sends it whole: its process imports nothing of ours."""

        actor = ray.remote(Idle).options(
            num_cpus=self._needed["CPU"],
            num_gpus=self._needed.get("GPU", 0),
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        self._taken[node["NodeID"]] = [actor.remote() for _ in range(places(node["Resources"], self._needed))]

    def forget(self, node: dict[str, Any]) -> None:
        """The node has left."""
        self._taken.pop(node["NodeID"], None)
