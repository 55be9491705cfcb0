"""What those who plan, train and record trials pass to one another. Imports no torch: see `tune.runs.open_executor`."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from gcsr import TrialConfig

__all__ = [
    "Outcome",
    "SweepJob",
    "UnitSource",
    "checkpoint_name",
    "network_name",
    "tensorboard_name",
    "trial_name",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepJob:
    """What all trials of a sweep share beside their configs.

    Attributes:
        experiment: column of the store.
        store: location of the store, for checkpoints and networks.
        data: data root, a folder or a URI; None for each machine's default.
        device: ``cpu``, ``cuda`` or ``auto``.
        gpu_share: of a GPU, that a worker takes.
        threads: CPU threads of a worker. One a trial and a trial a core is fastest where trials are many.
        workers: processes that train one trial together.
        cohort: how many trials one process trains as one batch at most; ``auto``: see `tune.cutting.is_stacked`.
        trials_per_gpu: how many other trials one process interleaves at most; ``auto``: see
            `gcsr.interleaving.Interleaved`.
        stop_collapsed: end a trial that cannot learn any more (`gcsr.collapse`).
        save_networks: keep each trained network in the store (`network_name`).
        deadline: as `time.time` counts; trials that have not ended by then stop after their running epoch.
        checkpoint_seconds: least time between two checkpoints of a trial. Shorter trials write none.
        digests: SHA-256 of each data set, as the nodes of a running cluster agreed on when the sweep began.
    """

    experiment: str
    store: str
    data: str | None = None
    device: str = "auto"
    gpu_share: float = 1.0
    threads: int = 1
    workers: int = 1
    cohort: int | Literal["auto"] = "auto"
    trials_per_gpu: int | Literal["auto"] = "auto"
    stop_collapsed: bool = False
    save_networks: bool = False
    deadline: float | None = None
    checkpoint_seconds: float = 10.0
    digests: Mapping[str, str] = field(default_factory=dict)

    def out_of_time(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.time() >= self.deadline


@dataclass(frozen=True, slots=True)
class Outcome:
    """The rows of a trial that ended: one of ``trials``, any number of ``epochs``."""

    row: dict[str, Any]
    epochs: list[dict[str, Any]]

    def __repr__(self) -> str:
        # Tune formats every result for debug messages that nobody reads: 300 epochs would cost milliseconds each time.
        return f"Outcome({self.row['trial_id']}, {self.row['status']}, {len(self.epochs)} epochs)"


class UnitSource(Protocol):
    """Units that are decided on while others run."""

    def next(self) -> list[TrialConfig] | None:
        """The next unit; None if there is none until another has ended, or at all (see `finished`)."""

    @property
    def finished(self) -> bool:
        """Whether every trial has ended; asked where `next` gave none."""


def checkpoint_name(trial_id: str) -> str:
    """Where a trial's checkpoint lies in its store."""
    return f"checkpoints/{trial_id}.pt"


def network_name(row: Mapping[str, Any]) -> str:
    """Where a trial's trained network lies in its store.

    Args:
        row: its row of ``trials``, or the fields of its config and its ``trial_id``.
    """
    return f"networks/{trial_name(row)}.pt"


def tensorboard_name(row: Mapping[str, Any]) -> str:
    """Where the event file of a trial's TensorBoard run lies in its store, in a folder of its own."""
    return f"tensorboard/{trial_name(row)}/events.out.tfevents.0.gcsr"


def trial_name(row: Mapping[str, Any]) -> str:
    """A trial's name: what people look for first, then its identity."""
    model = row["model"].replace(":", ".")  # which some tools take for the end of a host's name
    method = f"{row['dataset']}-{model}-{row['regularizer']}-{row['mode']}"
    return f"{method}-lam{row['lam']:g}-seed{row['seed']}-{row['trial_id'][:8]}"
