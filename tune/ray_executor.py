"""The Ray executor: trials through Ray Tune, on a local Ray that it starts or on a running cluster."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ray import tune as ray_tune

from gcsr import TrialConfig
from gcsr.scratch import scratch_folder
from tune.capacity import alive_nodes, plan_on_cluster
from tune.cutting import UnitCutter, alone_on_cpus, is_stacked
from tune.events import RunEvent
from tune.job import Outcome, SweepJob, UnitSource, checkpoint_name
from tune.node_check import NodeChecks
from tune.placement import Resources, TooSmallError, plan_trials
from tune.quarantine import Quarantine
from tune.ray_scheduler import SparingScheduler
from tune.ray_searcher import UnitSearcher, back_off
from tune.recorder import Listener
from tune.relay import NodeWatch, Relay, StopWhenOver
from tune.schema import failed_row
from tune.store import Store
from tune.trainable import JOB, PLAN, UNIT, SweepTrainable, unit_text
from tune.workers import train_with_workers

__all__ = ["RayExecutor"]

_TUNE_RETRIES = 1  # of a trial whose worker was lost, by Tune, at once
_ROUNDS = 3  # … and by us, as Tune gives a trial up when it learns of one death twice


class RayExecutor:
    """Runs trials through Ray Tune, on the Ray that this process is connected to (`tune.ray_connection`).

    Args:
        job: what the trials share.
        on_cluster: whether that is a running cluster, rather than a Ray of our own.
        wait: seconds for a running cluster that is too small yet; see `tune.capacity.plan_on_cluster`.
        max_concurrent: at most so many units at once; None for as many as fit.
        trials: some that use every data set and network of the run; a running cluster's nodes are asked whether they
            have them.

    Raises:
        InvalidInputError: Ray could never run a trial, or has a node that cannot serve.
    """

    def __init__(
        self,
        job: SweepJob,
        *,
        on_cluster: bool,
        wait: float | None = None,
        max_concurrent: int | None = None,
        trials: Sequence[TrialConfig] = (),
    ) -> None:
        self._job = job
        self._max_concurrent = max_concurrent
        self._watch: NodeWatch | None = None
        if on_cluster:
            self._plan = plan_on_cluster(job, wait)
            checks = NodeChecks(job, trials, self._plan.resources)
            nodes = alive_nodes()
            self._job = replace(job, digests=checks.check(nodes))
            quarantine = Quarantine(self._plan.resources)
            self._watch = NodeWatch(nodes, checks, quarantine, lambda unit: self.cutter.under_way(unit))
        else:
            self._plan = plan_trials(job, [node["Resources"] for node in alive_nodes()])
        gpu = "GPU" in self._plan.resources
        # A worker whose GPU is gone is not to train on its CPU: a node without one is no place for these trials.
        self._job = alone_on_cpus(replace(self._job, device="cuda" if gpu else "cpu"), gpu=gpu)
        self._slots = min(self._plan.slots, max_concurrent or self._plan.slots)
        self._nodes_then: tuple[str, ...] = ()  # when it was last asked how many units they hold
        self._slots_then = 0

    @property
    def cutter(self) -> UnitCutter:
        """Cuts trials into units for this executor."""
        return UnitCutter(job=self._job, gpu="GPU" in self._plan.resources, slots=self._slots)

    def _slots_now(self) -> int:
        """How many units the nodes that are there can hold: a cluster may still be growing, or have lost some."""
        if self._watch is None:
            return self._slots
        ids = tuple(node["NodeID"] for node in self._watch.nodes)
        if ids != self._nodes_then:
            held = _slots_of(self._job, [node["Resources"] for node in self._watch.nodes])
            self._nodes_then, self._slots_then = ids, min(held, self._slots)
        return self._slots_then

    def run(self, work: Sequence[Sequence[TrialConfig]], listener: Listener) -> None:
        """Run all units, started in this order; the listener hears of each outcome as it comes."""

        def fit(units: Sequence[Sequence[TrialConfig]], ending: _Ending) -> bool:
            return self._fit({UNIT: ray_tune.grid_search([unit_text(unit) for unit in units])}, ending)

        _run_in_rounds(work, fit, _Ending(listener, self._job), _Losses(self._job))

    def search(self, source: UnitSource, listener: Listener) -> None:
        """Run units as the source gives them, until it has finished."""
        ending = _Ending(listener, self._job)
        losses = _Losses(self._job)
        searcher = UnitSearcher(
            source,
            self._shared,
            left=ending.left,
            again=losses.again,
            on_lost=ending.give_up,
        )
        self._fit({}, ending, searcher)

    @property
    def _shared(self) -> dict[str, Any]:
        return {JOB: self._job, PLAN: self._plan}

    def _trainable(self) -> Any:
        if self._job.workers == 1:
            return ray_tune.with_resources(SweepTrainable, ray_tune.PlacementGroupFactory([self._plan.resources]))
        # Ray Train places the workers itself: to Tune the trial's driver takes no core.
        return ray_tune.with_resources(train_with_workers, ray_tune.PlacementGroupFactory([{"memory": 1}]))

    def _fit(self, space: dict[str, Any], ending: "_Ending", searcher: UnitSearcher | None = None) -> bool:
        """Run a Tune experiment; whether the deadline has passed."""
        relay = Relay(ending, self._watch, ending.left)
        several = self._job.workers > 1
        with scratch_folder("gcsr-tune-") as state:
            tuner = ray_tune.Tuner(
                self._trainable(),
                param_space=space | (self._shared if searcher is None else {}),
                tune_config=ray_tune.TuneConfig(
                    search_alg=searcher,
                    scheduler=SparingScheduler(self._slots_now),
                    num_samples=1 if searcher is None else -1,
                    reuse_actors=not several,
                    # A searcher is asked for as many as may run; a grid's trials wait in Tune.
                    max_concurrent_trials=self._slots if several or searcher is not None else self._max_concurrent,
                ),
                run_config=ray_tune.RunConfig(
                    name=self._job.experiment,
                    storage_path=str(state),
                    callbacks=[relay],
                    stop=StopWhenOver(relay),
                    # A trial's own fault comes back as a result: only a lost worker is an error to Tune.
                    failure_config=ray_tune.FailureConfig(max_failures=_TUNE_RETRIES),
                    checkpoint_config=None
                    if several
                    else ray_tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                    verbose=0,
                ),
            )
            try:
                tuner.fit()
            except ray_tune.TuneError as error:
                if isinstance(error.__context__, OSError):  # of the store, in a callback or the searcher
                    raise error.__context__ from None
                raise
            if relay.error is not None:
                raise relay.error
            return relay.out_of_time or self._job.out_of_time()


class _Ending:
    """Remembers which trials have ended, and passes everything on, each end once."""

    def __init__(self, listener: Listener, job: SweepJob) -> None:
        self._listener, self._job = listener, job
        self._ended: set[str] = set()

    def left(self, unit: Sequence[TrialConfig]) -> list[TrialConfig]:
        """What is to be trained of a unit whose worker was lost: a cohort whole, or not at all."""
        missing = self._missing(unit)
        return list(unit) if missing and is_stacked(unit[0], self._job.cohort) else missing

    def give_up(self, unit: Sequence[TrialConfig]) -> None:
        """The trials of a unit that have not ended fail."""
        for config in self._missing(unit):
            text = f"its worker was lost {_ROUNDS} times without progress; see Ray's logs"
            self.ended(Outcome(failed_row(config, self._job.experiment, text), []))

    def _missing(self, unit: Sequence[TrialConfig]) -> list[TrialConfig]:
        return [config for config in unit if config.trial_id not in self._ended]

    def ended(self, outcome: Outcome) -> None:
        if outcome.row["trial_id"] not in self._ended:
            self._ended.add(outcome.row["trial_id"])
            self._listener.ended(outcome)

    def noticed(self, event: RunEvent) -> None:
        self._listener.noticed(event)


class _Losses:
    """Counts how often a unit's worker was lost since it last got on.

    On machines that come and go a long trial may lose many workers and still reach its end; one that kills its
    workers itself does not.
    """

    def __init__(self, job: SweepJob) -> None:
        self._store, self._cohort = Store(job.store), job.cohort
        self._counts: Counter[str] = Counter()
        self._saved: dict[str, list[float | None]] = {}  # when, by the store's clock

    def again(self, unit: Sequence[TrialConfig]) -> list[list[TrialConfig]]:
        """The unit's worker was lost: what to try of it, in units; nothing to give it up.

        Before it is given up, each of its trials is tried by itself, as only one of them may be what kills the worker.
        """
        key = unit[0].trial_id
        saved = [self._store.modified(checkpoint_name(config.trial_id)) for config in unit]
        if saved != self._saved.get(key):
            self._counts[key] = 0
        self._saved[key] = saved
        self._counts[key] += 1
        if self._counts[key] >= _ROUNDS:
            return []
        if self._counts[key] < _ROUNDS - 1 or len(unit) == 1 or is_stacked(unit[0], self._cohort):
            return [list(unit)]
        self._saved[key] = saved[:1]  # what the trial alone is compared with next
        return [[config] for config in unit]


def _slots_of(job: SweepJob, nodes: Sequence[Resources]) -> int:
    """How many units nodes of these resources hold, be they too small for any."""
    try:
        return plan_trials(job, nodes).slots
    except TooSmallError:
        return 0


def _run_in_rounds(
    work: Sequence[Sequence[TrialConfig]],
    fit: Callable[[Sequence[Sequence[TrialConfig]], _Ending], bool],
    ending: _Ending,
    losses: _Losses,
) -> None:
    """Run units, and again what is left of those whose worker was lost, until it has ended or is given up.

    Args:
        work: the units.
        fit: runs units once and tells which trials end; whether the deadline has passed.
        ending: who is told.
        losses: of this run.
    """
    left, rounds = list(work), 0
    while left:
        out_of_time = fit(left, ending)
        lost = [rest for unit in left if (rest := ending.left(unit))]
        if out_of_time:
            return
        left = []
        for unit in lost:
            again = losses.again(unit)
            left += again
            if not again:
                ending.give_up(unit)
        rounds += 1
        if left:
            time.sleep(back_off(rounds))
