"""What every run of many trials needs, be it a sweep or a search: options, an executor, a record of what ended."""

import time
from collections.abc import Sequence, Set
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, get_args

from gcsr import DataError, TrialConfig
from gcsr.data import load_arrays
from tune.compaction import SINGLES, compact
from tune.inline_executor import InlineExecutor
from tune.progress import SweepProgress
from tune.provenance import provenance
from tune.spec import SweepSpec
from tune.store import Store
from tune.trial import Outcome, SweepJob, checkpoint_name
from tune.units import UnitSource, units

if TYPE_CHECKING:
    from tune.ray_executor import RayExecutor

__all__ = [
    "EXECUTORS",
    "Executor",
    "Recorder",
    "RowSource",
    "RunOptions",
    "check_data",
    "cut_units",
    "job_of",
    "note_run",
    "open_executor",
    "run_source",
]

Executor = Literal["ray", "inline"]
_NOTED_RUNS = 50
EXECUTORS: tuple[Executor, ...] = get_args(Executor)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """How to run trials; nothing here changes what they measure.

    Attributes:
        resume: go on with a store that is there already.
        executor: ``ray``, or ``inline`` for this process.
        address: of a running Ray cluster; None starts Ray on this machine.
        max_concurrent: at most so many trials at once; None for all cores or GPUs.
        data: data root; None for the default.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: CPU threads of a trial.
        stop_collapsed: end a trial that cannot learn any more (`gcsr.collapse`).
        time_limit: seconds after which trials stop at the end of their running epoch; None for no limit.
        cohort: how many trials one process trains together at most; ``auto``: see `tune.units.is_stacked`.
    """

    resume: bool = False
    executor: Executor = "ray"
    address: str | None = None
    max_concurrent: int | None = None
    data: str | None = None
    device: str = "auto"
    threads: int = 1
    stop_collapsed: bool = False
    time_limit: float | None = None
    cohort: int | Literal["auto"] = "auto"


class RowSource(UnitSource, Protocol):
    """Units that are decided on by the rows of those that ended."""

    def ended(self, row: dict[str, Any]) -> None:
        """A trial ended: its row of the store."""


class Recorder:
    """Stores every outcome at once and shows the progress; a context manager.

    Args:
        store: where.
        total: trials of the whole run.
        stored: ids of those that had ended before; if one runs again, its outcome is dropped.
        slots: how many run at once.
        before: how many had ended before.
    """

    def __init__(self, store: Store, total: int, stored: Set[str], slots: int, before: int) -> None:
        self.failures: list[str] = []
        self._store, self._stored = store, stored
        self._since_merge = SINGLES  # look at the first: an earlier run may have left many
        self._progress = SweepProgress(total, before, slots)

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, value, trace)
        if kind is None:
            compact(self._store)

    @property
    def statuses(self) -> dict[str, int]:
        """How many trials ended how."""
        return dict(self._progress.statuses)

    def __call__(self, outcome: Outcome) -> None:
        row = outcome.row
        if row["trial_id"] in self._stored:
            return  # it ran again only to keep the others company
        self._store.write_trial(row, outcome.epochs)
        self._store.remove(checkpoint_name(row["trial_id"]))
        if row["status"] == "failed":
            self.failures.append(f"{row['trial_id']}: {row['error']}")
        self._progress.ended(row)
        self._since_merge += 1
        if self._since_merge >= SINGLES:
            compact(self._store)
            self._since_merge = 0


def open_executor(job: SweepJob, options: RunOptions) -> "InlineExecutor | RayExecutor":
    """The executor that the options ask for; enter it before use."""
    if options.executor == "inline":
        return InlineExecutor(job)
    from tune.ray_executor import RayExecutor  # Ray is only imported where it is used: inline needs none

    return RayExecutor(job, address=options.address, max_concurrent=options.max_concurrent)


def job_of(spec: SweepSpec, store: Store, options: RunOptions) -> SweepJob:
    """What the run's trials share."""
    location = store.path().rstrip("/") if store.is_local else store.location
    return SweepJob(
        experiment=spec.experiment,
        store=location,
        data=options.data,
        device=options.device,
        threads=options.threads,
        workers=spec.workers,
        cohort=options.cohort,
        stop_collapsed=options.stop_collapsed,
        deadline=None if options.time_limit is None else time.time() + options.time_limit,
    )


def check_data(trials: Sequence[TrialConfig], options: RunOptions) -> None:
    """Raise `DataError` before anything is started if this machine's data cannot serve the trials.

    Not for a running cluster: its nodes have data folders of their own.
    """
    if options.address is not None:
        return
    for name in sorted({config.dataset for config in trials}):
        images = len(load_arrays(name, options.data)["train_images"])
        for config in trials:
            if config.dataset == name and config.holdout and not 1 <= round(images * config.holdout) < images:
                raise DataError(f"holdout: {config.holdout} leaves no images of {name} to train on")


def cut_units(trials: Sequence[TrialConfig], job: SweepJob, *, gpu: bool) -> list[list[TrialConfig]]:
    """The trials in the units that the job allows; one over several workers is a unit of its own."""
    return units(trials, 1 if job.workers > 1 else job.cohort, gpu=gpu)


def run_source(executor: "InlineExecutor | RayExecutor", source: RowSource, recorder: Recorder) -> None:
    """Run what the source gives until it has finished; it is told of every row once that is stored."""

    def on_end(outcome: Outcome) -> None:
        recorder(outcome)
        source.ended(outcome.row)

    if not source.finished:
        executor.search(source, on_end)


def note_run(store: Store, spec: SweepSpec, **more: Any) -> None:
    """Note in the store which spec is run into it, by what and when; what earlier runs noted stays.

    Args:
        store: the store.
        spec: the spec.
        more: further entries: ``trials``, the ids of planned trials, are added to those known; ``planned`` is a number.
    """
    before = store.read_manifest() or {}
    more["trials"] = sorted(set(before.get("trials", [])) | set(more.get("trials", [])))
    runs = [*before.get("runs", []), provenance()][-_NOTED_RUNS:]
    store.write_manifest(
        before | {"experiment": spec.experiment, "spec": spec.model_dump(mode="json"), "runs": runs} | more
    )
