"""What every run of many trials needs, be it a sweep or a search: options, an executor, a record of what ended."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

from gcsr import ConfigError, InvalidInputError, TrialConfig
from gcsr.arrays import held_out
from gcsr.names import is_mlp
from tune.events import RunEvent
from tune.folder import StoreError
from tune.job import Outcome, SweepJob
from tune.networks import check_networks, network_digests, to_be_built
from tune.node_data import local_arrays, local_digest
from tune.progress import SweepProgress
from tune.provenance import provenance
from tune.recorder import Observer, Recorder
from tune.spec import SweepSpec
from tune.store import Store
from tune.sweep_log import SweepLog
from tune.terminal import complain
from tune.words import short_digest

if TYPE_CHECKING:
    from tune.cutting import UnitCutter
    from tune.inline_executor import InlineExecutor
    from tune.ray_executor import RayExecutor

__all__ = [
    "EXECUTORS",
    "NOTED_RUNS",
    "ExecutorName",
    "RowSource",
    "RunOptions",
    "Wanted",
    "check_data",
    "check_machine",
    "check_unused",
    "job_of",
    "note_run",
    "open_executor",
    "recording",
    "run_source",
]

ExecutorName = Literal["ray", "inline"]
EXECUTORS: tuple[ExecutorName, ...] = get_args(ExecutorName)
NOTED_RUNS = 50
"""Of a store: the last ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """How to run trials.

    ``stop_collapsed`` may end a trial early; ``device``, ``threads`` and ``cohort`` change the rounding of what it
    measures. Nothing else changes results.

    Attributes:
        resume: go on with a store that is there already.
        executor: ``ray``, or ``inline`` for this process.
        address: of a running Ray cluster; None starts Ray on this machine.
        wait: seconds for a cluster that is too small yet; None: see `tune.capacity.plan_on_cluster`.
        max_concurrent: at most so many units of trials at once; None for all cores or GPUs.
        data: data root, a folder or a URI; None for the default.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: CPU threads of a trial; ``auto``: one under Ray, `tune.trial.threads_for` in this process.
        gpu_share: of a GPU, that a worker takes.
        tensorboard: also write each trial's curves as a TensorBoard run.
        stop_collapsed: end a trial that cannot learn any more (`gcsr.collapse`).
        time_limit: seconds after which trials stop at the end of their running epoch; None for no limit.
        cohort: how many trials one process trains as one batch at most; ``auto``: see `tune.cutting.is_stacked`.
        trials_per_gpu: how many other trials one process interleaves at most; ``auto``: see
            `gcsr.interleaving.Interleaved`.

    Raises:
        InvalidInputError: a value is not allowed, or not beside another.
    """

    resume: bool = False
    executor: ExecutorName = "ray"
    address: str | None = None
    wait: float | None = None
    max_concurrent: int | None = None
    data: str | None = None
    device: str = "auto"
    threads: int | Literal["auto"] = "auto"
    gpu_share: float = 1.0
    tensorboard: bool = False
    stop_collapsed: bool = False
    time_limit: float | None = None
    cohort: int | Literal["auto"] = "auto"
    trials_per_gpu: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise ConfigError("executor", self.executor, "one of " + ", ".join(EXECUTORS))
        for name in ("threads", "cohort", "trials_per_gpu"):
            if getattr(self, name) != "auto" and not _is_count(getattr(self, name)):
                raise ConfigError(name, getattr(self, name), "auto, or an integer of at least 1")
        if self.max_concurrent is not None and not _is_count(self.max_concurrent):
            raise ConfigError("max_concurrent", self.max_concurrent, "an integer of at least 1")
        if not 0.01 <= self.gpu_share <= 1:
            raise ConfigError("gpu_share", self.gpu_share, "a number from 0.01 to 1")
        if self.time_limit is not None and self.time_limit <= 0:
            raise ConfigError("time_limit", self.time_limit, "a number of seconds above 0")
        if self.time_limit is not None and self.cohort not in ("auto", 1):
            raise InvalidInputError(
                f"cohort: {self.cohort} is not allowed with a time limit, as a cohort saves nothing on its way; "
                "expected auto or 1"
            )
        if self.executor == "inline":
            for name in ("address", "max_concurrent", "wait"):
                if value := getattr(self, name):
                    raise InvalidInputError(f"{name}: {value!r} is not allowed; expected it with --executor ray")


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


class Wanted(NamedTuple):
    """Trials that belong together, and are to be cut into units (`tune.cutting.UnitCutter.cut`).

    Attributes:
        trials: all of them.
        missing: ids of those that are to be trained.
    """

    trials: Sequence[TrialConfig]
    missing: Set[str]


class RowSource(Protocol):
    """Trials that are decided on by the rows of those that ended."""

    def next(self) -> Wanted | None:
        """What to train next; None if there is nothing until a trial has ended, or at all (see `finished`)."""

    @property
    def finished(self) -> bool:
        """Whether every trial has ended."""

    def ended(self, row: dict[str, Any]) -> None:
        """A trial ended: its row of the store."""


@contextlib.contextmanager
def open_executor(
    store: Store, job: SweepJob, options: RunOptions, trials: Sequence[TrialConfig]
) -> Iterator["InlineExecutor | RayExecutor"]:
    """The executor that the options ask for, and Ray with it; closed at the end of the block.

    What has been imported before this imports no torch, so that bad input is answered, and Ray started, at once.

    Args:
        store: that the trials are run into.
        job: what the trials share.
        options: how to run them.
        trials: some that use every data set and network of the run.

    Raises:
        InvalidInputError: it could never run a trial; the store's trials were trained on other data; or, of a cluster,
            it cannot be reached or has an unfit node.
    """
    check_data(store, job, options, trials)
    if options.executor == "inline":
        from tune.inline_executor import InlineExecutor

        with InlineExecutor(job, options.threads) as inline:
            yield inline
        return
    try:
        from tune.ray_connection import connected, probe  # Ray is only imported where it is used: inline needs none
    except ModuleNotFoundError as error:
        raise InvalidInputError(f"executor: ray needs {error.name}, which is not installed; expected inline") from None
    if options.address is not None:
        probe(options.address)
    # Ray's processes take seconds to start: time to import what is needed next.
    needed = ("pandas", "pyarrow.parquet")  # nothing of Ray, which is starting
    threading.Thread(target=_import_all, args=[needed]).start()
    with connected(options.address):
        from tune.ray_executor import RayExecutor

        executor = RayExecutor(
            job,
            on_cluster=options.address is not None,
            wait=options.wait,
            max_concurrent=options.max_concurrent,
            trials=trials,
        )
        if options.address is not None:
            _check_same_data(store, _digests(trials, executor.cutter.job))
        yield executor


def _import_all(modules: Sequence[str]) -> None:
    for module in modules:
        import_module(module)


def recording(
    store: Store,
    spec: SweepSpec,
    options: RunOptions,
    *,
    total: int,
    stored: Set[str],
    slots: int,
    at_once: int,
    ended_before: int,
    at_most: bool = False,
) -> Recorder:
    """The recorder of a run, with all who are to be told.

    Args:
        store: where outcomes go.
        spec: of the run.
        options: of the run.
        total: trials of the whole run.
        stored: ids of those that had ended before.
        slots: how many units run at once.
        at_once: how many trials those are, at most.
        ended_before: how many of the run's trials had ended before.
        at_most: whether ``total`` is only known not to be exceeded.
    """
    if options.resume and not (stored or any(store.files("trials")) or store.leftovers()):  # perhaps DIR is mistyped
        complain(f"gcsr: nothing is stored in {store.location} yet: the run starts from the beginning")
    started = {"experiment": spec.experiment, "trials": total, "ended_before": ended_before, "slots": slots}
    observers: list[Observer] = [SweepLog(store, started | {"executor": options.executor, "address": options.address})]
    if options.tensorboard:
        from tune.tensorboard import TensorBoardRuns  # only here: it takes half a second to import

        observers.append(TensorBoardRuns(store))
    if options.address is not None:
        from tune.sweep_metrics import SweepMetrics  # only here: it imports Ray

        observers.append(SweepMetrics(spec.experiment, total, ended_before))
    return Recorder(store, stored, [*observers, SweepProgress(total, ended_before, at_once, at_most=at_most)])


def job_of(spec: SweepSpec, store: Store, options: RunOptions) -> SweepJob:
    """What the run's trials share."""
    location = store.path().rstrip("/") if store.is_local else store.location
    return SweepJob(
        experiment=spec.experiment,
        store=location,
        data=options.data,
        device=options.device,
        threads=1 if options.threads == "auto" else options.threads,
        gpu_share=options.gpu_share,
        workers=spec.workers,
        cohort=options.cohort,
        trials_per_gpu=options.trials_per_gpu,
        stop_collapsed=options.stop_collapsed,
        deadline=None if options.time_limit is None else time.time() + options.time_limit,
    )


def check_unused(store: Store, options: RunOptions) -> None:
    """Raise if the store is there already and the options do not say to go on with it.

    Raises:
        StoreError: it is; or what is there is no sweep's.
    """
    if store.exists() and not options.resume:
        raise StoreError(f"out: {store.location!r} is in use already; add --resume to go on, or name another")
    store.check_own()


def check_machine(trials: Sequence[TrialConfig], options: RunOptions, workers: int) -> None:
    """Raise before anything is started if this machine's device or data cannot serve the trials, warn if badly.

    Not for a running cluster: its nodes have devices, data folders and modules of their own (`tune.node_check`).

    Args:
        trials: some that use every data set and network of the run.
        options: of the run.
        workers: processes that train one trial together.

    Raises:
        InvalidInputError: the device is not there, the data is missing, damaged or too small, or a network cannot be
            built.
    """
    if options.address is not None:
        return
    plain = all(is_mlp(config.model) and config.precision == "fp32" for config in trials)
    if options.device not in ("auto", "cpu") or not plain:
        from tune.trial import choose_device, warn_of_precision  # only here: torch knows, and takes seconds to import

        warn_of_precision(trials, choose_device(options.device))
    for name in sorted({config.dataset for config in trials}):
        arrays = local_arrays(options.data, name)
        of_these = [config for config in trials if config.dataset == name]
        for config in of_these:
            held_out(len(arrays["train_images"]), config.holdout)
        check_networks(to_be_built(of_these), arrays, workers)


def run_source(executor: "InlineExecutor | RayExecutor", source: RowSource, recorder: Recorder) -> None:
    """Run what the source gives until it has finished; it is told of every row once that is stored."""
    if not source.finished:
        executor.search(_Units(source, executor.cutter), _Feeding(source, recorder))


class _Units:
    """What a source wants, in units."""

    def __init__(self, source: RowSource, cutter: "UnitCutter") -> None:
        self._source, self._cutter = source, cutter
        self._queue: deque[list[TrialConfig]] = deque()

    def next(self) -> list[TrialConfig] | None:
        while not self._queue and (wanted := self._source.next()) is not None:
            self._queue.extend(self._cutter.cut(wanted.trials, wanted.missing))
        return self._queue.popleft() if self._queue else None

    @property
    def finished(self) -> bool:
        return self._source.finished


class _Feeding:
    """Tells the recorder, and then the source."""

    def __init__(self, source: RowSource, recorder: Recorder) -> None:
        self._source, self._recorder = source, recorder

    def ended(self, outcome: Outcome) -> None:
        self._recorder.ended(outcome)
        self._recorder.wait()
        self._source.ended(outcome.row)

    def noticed(self, event: RunEvent) -> None:
        self._recorder.noticed(event)


def _digests(trials: Sequence[TrialConfig], job: SweepJob) -> dict[str, str]:
    """SHA-256 of the content of each data set that the trials use, as a cluster's nodes agreed on it or as it is here.

    Raises:
        InvalidInputError: one is not there, or damaged.
    """
    names = {config.dataset for config in trials} - {"digits"}
    return {name: job.digests.get(name) or local_digest(job.data, name) for name in sorted(names)}


def check_data(store: Store, job: SweepJob, options: RunOptions, trials: Sequence[TrialConfig]) -> None:
    """Raise if this machine's data is not what the store's trials were trained on; a cluster's nodes are asked later.

    Args:
        store: of the run.
        job: of the run.
        options: of the run.
        trials: some that use every data set of the run.

    Raises:
        InvalidInputError: it is other data.
    """
    if options.address is None:
        _check_same_data(store, _digests(trials, job))


def _check_same_data(store: Store, digests: Mapping[str, str]) -> None:
    """Raise if trials of the store were trained on other data: no mean may be over both.

    Raises:
        InvalidInputError: they were.
    """
    before = (store.read_manifest() or {}).get("data", {})
    for name in sorted(before.keys() & digests.keys()):
        if before[name] != digests[name]:
            expected, found = short_digest(before[name]), short_digest(digests[name])
            raise InvalidInputError(
                f"data: {name} with the sha256 {found} is not allowed; expected {expected}, which the trials in "
                f"{store.location} were trained on"
            )


def note_run(
    store: Store,
    spec: SweepSpec,
    job: SweepJob,
    trained: Sequence[TrialConfig] = (),
    *,
    trials: Sequence[str] = (),
    planned: int | None = None,
) -> None:
    """Note in the store which spec is run into it, on what data, by what and when; what earlier runs noted stays.

    Say so if a module that builds a network was changed since: what it builds may be another, or the same.

    Args:
        store: the store.
        spec: the spec.
        job: of the run, as its executor has it.
        trained: some trials that use every data set and network of the run.
        trials: ids of planned trials, added to those that are noted.
        planned: how many trials there will be, where their ids are not known yet.
    """
    noted = store.read_manifest() or {}
    networks = noted.get("networks", {})
    for name, found in network_digests(trained).items():
        known = networks.setdefault(name, [found])
        if found != known[-1]:
            known.append(found)
            complain(
                f"gcsr: model: the module of {name} was changed since trials in {store.location} were trained: if it "
                "builds another network, give a new --out"
            )
    new: dict[str, Any] = {
        "experiment": spec.experiment,
        "spec": spec.model_dump(mode="json"),
        "runs": [*noted.get("runs", []), provenance()][-NOTED_RUNS:],
        "trials": sorted({*noted.get("trials", []), *trials}),
        "data": noted.get("data", {}) | _digests(trained, job),
    }
    if networks:
        new["networks"] = networks
    if planned is not None:
        new["planned"] = planned
    store.write_manifest(noted | new)
