"""What happens in a run beside trials that end."""

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

__all__ = ["NodeJoined", "NodeLeft", "NodeUnfit", "Pulse", "RunEvent", "TimeLimit", "WorkerLost"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeJoined:
    """A node joined the cluster.

    Attributes:
        node: its address.
        nodes: how many there are now.
    """

    name: ClassVar = "node_joined"
    node: str
    nodes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeLeft:
    """A node left the cluster, with or without notice.

    Attributes:
        node: its address.
        nodes: how many are left.
    """

    name: ClassVar = "node_left"
    node: str
    nodes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeUnfit:
    """A node that joined gets no trials.

    Attributes:
        node: its address.
        problem: why.
    """

    name: ClassVar = "node_unfit"
    node: str
    problem: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerLost:
    """A worker ended before its trials did.

    Attributes:
        trials: in words.
    """

    name: ClassVar = "worker_lost"
    trials: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeLimit:
    """The run's time is over.

    Attributes:
        left: how many trials it leaves to another run.
    """

    name: ClassVar = "time_limit"
    left: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Pulse:
    """Comes every few seconds on a cluster.

    Attributes:
        running: trials under way.
        nodes: of the cluster.
    """

    name: ClassVar = "pulse"
    running: int
    nodes: int


RunEvent: TypeAlias = NodeJoined | NodeLeft | NodeUnfit | WorkerLost | TimeLimit | Pulse
"""``name`` and the fields are a line of the log."""
