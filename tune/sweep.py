"""A sweep from spec to store: what is missing is run, every outcome is stored at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from gcsr import DataError, TrialConfig
from gcsr.data import load_arrays
from tune.inline_executor import InlineExecutor
from tune.progress import SweepProgress
from tune.spec import SweepSpec
from tune.store import Store, StoreError
from tune.trial import Outcome, SweepJob, checkpoint_name
from tune.units import units

if TYPE_CHECKING:
    from tune.ray_executor import RayExecutor

__all__ = ["EXECUTORS", "Executor", "SweepOptions", "SweepOutcome", "run_sweep"]

Executor = Literal["ray", "inline"]
EXECUTORS: tuple[Executor, ...] = get_args(Executor)


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepOptions:
    """How to run a sweep; nothing here changes what its trials measure.

    Attributes:
        resume: go on with a store that is there already.
        executor: ``ray``, or ``inline`` for this process.
        address: of a running Ray cluster; None starts Ray on this machine.
        max_concurrent: at most so many trials at once; None for all cores or GPUs.
        data: data root; None for the default.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: CPU threads of a trial.
        cohort: how many trials one process trains together at most; ``auto``: see `tune.units.is_stacked`.
    """

    resume: bool = False
    executor: Executor = "ray"
    address: str | None = None
    max_concurrent: int | None = None
    data: str | None = None
    device: str = "auto"
    threads: int = 1
    cohort: int | Literal["auto"] = "auto"


@dataclass(frozen=True, slots=True)
class SweepOutcome:
    """How a sweep ended.

    Attributes:
        total: trials of the spec.
        ran: how many of them this call ran.
        statuses: how many trials of this call ended how.
        failures: one line for each trial that failed in this call.
    """

    total: int
    ran: int
    statuses: dict[str, int]
    failures: tuple[str, ...]


def run_sweep(spec: SweepSpec, store: Store, options: SweepOptions) -> SweepOutcome:
    """Run what the store lacks of the spec's trials.

    Trials that failed are run again; all others are kept. Safe to kill at any moment: calling it again with
    ``resume`` ends in the same table.

    Raises:
        InvalidInputError: the spec, the data or the store cannot be used; nothing was started.
    """
    trials = spec.trials()
    if store.exists() and not options.resume:
        raise StoreError(f"out: {store.location!r} holds a sweep already; add --resume to go on, or name another")
    if options.address is None:  # a cluster's nodes have data folders of their own
        _check_data(trials, options.data)
    job = _job(spec, store, options)
    with store.exclusive():
        ended = store.ended()
        missing = [config for config in trials if config.trial_id not in ended]
        if not missing:
            _write_manifest(store, spec, trials)
            return SweepOutcome(len(trials), 0, {}, ())
        with _executor(job, options) as executor:  # refuses what can never run, before the store is touched
            _write_manifest(store, spec, trials)
            # Units are cut from the whole sweep: who is trained with whom does not depend on what a killed run left.
            cut = units(trials, 1 if spec.workers > 1 else options.cohort, gpu=executor.gpu)
            return _run_missing(executor, cut, {config.trial_id for config in missing}, len(trials), store)


def _run_missing(
    executor: "InlineExecutor | RayExecutor",
    cut: Sequence[Sequence[TrialConfig]],
    missing: set[str],
    total: int,
    store: Store,
) -> SweepOutcome:
    failures: list[str] = []
    work = [unit for unit in cut if any(config.trial_id in missing for config in unit)]
    with SweepProgress(total, total - len(missing), executor.slots) as progress:

        def on_end(outcome: Outcome) -> None:
            if outcome.row["trial_id"] not in missing:
                return  # stored before; it ran again only to keep the others' company
            store.write_trial(outcome.row, outcome.epochs)
            store.remove(checkpoint_name(outcome.row["trial_id"]))
            if outcome.row["status"] == "failed":
                failures.append(f"{outcome.row['trial_id']}: {outcome.row['error']}")
            progress.ended(outcome.row)

        executor.run(work, on_end)
    return SweepOutcome(total, len(missing), dict(progress.statuses), tuple(failures))


def _executor(job: SweepJob, options: SweepOptions) -> "InlineExecutor | RayExecutor":
    if options.executor == "inline":
        return InlineExecutor(job)
    from tune.ray_executor import RayExecutor  # Ray is only imported where it is used: inline needs none

    return RayExecutor(job, address=options.address, max_concurrent=options.max_concurrent)


def _job(spec: SweepSpec, store: Store, options: SweepOptions) -> SweepJob:
    location = store.path().rstrip("/") if store.is_local else store.location
    return SweepJob(
        experiment=spec.experiment,
        store=location,
        data=options.data,
        device=options.device,
        threads=options.threads,
        workers=spec.workers,
        cohort=options.cohort,
    )


def _check_data(trials: Sequence[TrialConfig], root: str | None) -> None:
    for name in sorted({config.dataset for config in trials}):
        images = len(load_arrays(name, root)["train_images"])
        for config in trials:
            if config.dataset == name and config.holdout and not 1 <= round(images * config.holdout) < images:
                raise DataError(f"holdout: {config.holdout} leaves no images of {name} to train on")


def _write_manifest(store: Store, spec: SweepSpec, trials: Sequence[TrialConfig]) -> None:
    """Note the sweep; a store that several specs were run into counts the trials of all of them."""
    known = set((store.read_manifest() or {}).get("trials", []))
    manifest = {
        "experiment": spec.experiment,
        "spec": spec.model_dump(mode="json"),
        "trials": sorted(known | {config.trial_id for config in trials}),
    }
    store.write_manifest(manifest)
