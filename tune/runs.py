"""What every run of many trials needs, be it a sweep or a search: checks, an executor, a record of what ended."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence, Set
from importlib import import_module
from typing import TYPE_CHECKING

from gcsr import InvalidInputError, TrialConfig
from gcsr.arrays import held_out
from gcsr.names import is_mlp
from tune.folder import StoreError
from tune.job import SweepJob
from tune.manifest import check_data, note_run
from tune.networks import check_networks, to_be_built
from tune.node_data import local_arrays
from tune.progress import SweepProgress
from tune.recorder import Observer, Recorder
from tune.run_options import RunOptions
from tune.spec import SweepSpec
from tune.store import Store
from tune.sweep_log import SweepLog
from tune.terminal import complain
from tune.warm_workers import warm_workers

if TYPE_CHECKING:
    from tune.inline_executor import InlineExecutor
    from tune.ray_executor import RayExecutor

__all__ = ["check_machine", "check_unused", "end_at_once", "job_of", "open_executor", "recording"]


def end_at_once(
    store: Store,
    spec: SweepSpec,
    job: SweepJob,
    options: RunOptions,
    trials: Sequence[TrialConfig],
    *,
    planned: int | None = None,
) -> None:
    """End a run whose trials have all ended before: without an executor, but not on other data.

    Args:
        store: that holds them.
        spec: of the run.
        job: what the trials share.
        options: of the run.
        trials: some that use every data set of the run.
        planned: see `tune.manifest.note_run`.

    Raises:
        InvalidInputError: the store's trials were trained on other data.
    """
    if options.address is None:
        check_data(store, job, trials)
    if store.read_manifest() is None:
        note_run(store, spec, job, planned=planned)


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
    if options.address is None:
        check_data(store, job, trials)  # a cluster's nodes are asked first
    if options.executor == "inline":
        from tune.inline_executor import InlineExecutor

        with InlineExecutor(job, options.threads) as inline:
            yield inline
        return
    with warm_workers() if options.address is None else contextlib.nullcontext():
        try:
            from tune.ray_connection import connected, probe  # Ray is only imported where it is used: inline needs none
        except ModuleNotFoundError as error:
            missing = f"ray needs {error.name}, which is not installed"
            raise InvalidInputError(f"executor: {missing}; expected inline") from None
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
                check_data(store, executor.cutter.job, trials)
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
        save_networks=options.save_networks,
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
