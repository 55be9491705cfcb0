"""The Ray executor: trials through Ray Tune, on a local Ray that it starts or on a running cluster."""

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from gcsr import InvalidInputError, TrialConfig
from tune.trial import Outcome, SweepJob

# Ray reads these when it is imported or started, and its workers inherit them.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # our store is the log; saves half the overhead
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative data paths mean what they say
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its banner ignores verbose=0
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C must reach us, not be swallowed

import ray
from ray import tune as ray_tune

from tune.placement import TrialPlan, plan_trials
from tune.ray_searcher import UnitSearcher
from tune.schema import failed_row
from tune.trainable import JOB, OUTCOME, PLAN, UNIT, SweepTrainable, unit_text
from tune.units import UnitSource
from tune.workers import train_with_workers

__all__ = ["RayExecutor"]

_TUNE_RETRIES = 1  # of a trial whose worker was lost, by Tune, at once
_ROUNDS = 3  # … and by us, as Tune gives a trial up when it learns of one death twice
_BACK_OFF_SECONDS = 2.0  # before the second round; doubles
_PROBE_SECONDS = 5.0
_HEAD_PROBES = 3  # in a row that fail before the head counts as dead


class _Relay(ray_tune.Callback):  # type: ignore[misc]
    """Hands what Tune tells about its trials on to the sweep.

    Tune does not let a callback's exception out: it is kept, `_StopOnError` ends the experiment, and we raise it then.
    """

    def __init__(self, on_end: Callable[[Outcome], None]) -> None:
        self._on_end = on_end
        self.error: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks into its experiment state, which we never restore: the store is the truth.
        return {"_on_end": None, "error": None}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        try:
            for outcome in result[OUTCOME] if self.error is None else ():
                self._on_end(outcome)
        except Exception as error:  # the disk is full, the store is gone
            self.error = error


class _StopOnError(ray_tune.Stopper):  # type: ignore[misc]
    """Ends the experiment once an outcome could not be stored."""

    def __init__(self, relay: _Relay) -> None:
        self._relay = relay

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._relay.error is not None


class RayExecutor:
    """Runs trials through Ray Tune; a context manager that holds the connection to Ray.

    Args:
        job: what the trials share.
        address: a running cluster's; None starts a Ray of our own on this machine and stops it at the end.
        max_concurrent: at most so many trials at once; None for as many as fit.

    Raises:
        InvalidInputError: on entering, if the cluster cannot be reached or could never run a trial.
    """

    def __init__(self, job: SweepJob, *, address: str | None = None, max_concurrent: int | None = None) -> None:
        self._job = job
        self._address = address
        self._max_concurrent = max_concurrent
        self._plan = TrialPlan(resources={}, slots=0)

    def __enter__(self) -> Self:
        on_sigterm = signal.getsignal(signal.SIGTERM)
        _connect(self._address)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own in front, which only prints a stack and dies
        _watch_head()
        try:
            self._plan = plan_trials(self._job, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        ray.shutdown()

    @property
    def slots(self) -> int:
        """How many trials run at once; known after entering."""
        return min(self._plan.slots, self._max_concurrent or self._plan.slots)

    @property
    def gpu(self) -> bool:
        """Whether trials run on GPUs; known after entering."""
        return "GPU" in self._plan.resources

    def run(self, work: Sequence[Sequence[TrialConfig]], on_end: Callable[[Outcome], None]) -> None:
        """Run all units, started in this order; ``on_end`` is called with each outcome as it comes."""
        ended: set[str] = set()

        def end(outcome: Outcome) -> None:
            ended.add(outcome.row["trial_id"])
            on_end(outcome)

        left = list(work)
        for attempt in range(_ROUNDS):
            if attempt:
                time.sleep(_BACK_OFF_SECONDS * 2 ** (attempt - 1))
            self._run_round(left, _Relay(end))
            left = [unit for unit in left if any(config.trial_id not in ended for config in unit)]
            if not left or self._job.out_of_time():
                return
        for config in (config for unit in left for config in unit if config.trial_id not in ended):
            text = f"its worker was lost in each of {_ROUNDS} rounds; see Ray's logs"
            on_end(Outcome(failed_row(config, self._job.experiment, text), []))

    def search(self, source: UnitSource, on_end: Callable[[Outcome], None]) -> None:
        """Run units as the source gives them, until it has finished."""
        ended: set[str] = set()

        def end(outcome: Outcome) -> None:
            ended.add(outcome.row["trial_id"])
            on_end(outcome)

        def lost(unit: Sequence[TrialConfig]) -> None:
            text = f"its worker was lost {_ROUNDS} times; see Ray's logs"
            for config in unit:
                if config.trial_id not in ended:
                    end(Outcome(failed_row(config, self._job.experiment, text), []))

        searcher = UnitSearcher(source, self._shared, attempts=_ROUNDS, back_off=_BACK_OFF_SECONDS, on_lost=lost)
        self._fit({}, _Relay(end), searcher)

    def _run_round(self, work: Sequence[Sequence[TrialConfig]], relay: _Relay) -> None:
        self._fit({UNIT: ray_tune.grid_search([unit_text(unit) for unit in work]), **self._shared}, relay)

    @property
    def _shared(self) -> dict[str, Any]:
        return {JOB: self._job, PLAN: self._plan}

    def _fit(self, space: dict[str, Any], relay: _Relay, searcher: UnitSearcher | None = None) -> None:
        state = tempfile.mkdtemp(prefix="gcsr-tune-")
        several = self._job.workers > 1
        try:
            tuner = ray_tune.Tuner(
                # Ray Train places a multi-worker trial's workers itself: to Tune its driver takes no core.
                ray_tune.with_resources(train_with_workers, ray_tune.PlacementGroupFactory([{"memory": 1}]))
                if several
                else ray_tune.with_resources(SweepTrainable, ray_tune.PlacementGroupFactory([self._plan.resources])),
                param_space=space,
                tune_config=ray_tune.TuneConfig(
                    search_alg=searcher,
                    num_samples=1 if searcher is None else -1,
                    reuse_actors=not several,
                    # A searcher is asked for as many as may run; a grid's trials wait in Tune.
                    max_concurrent_trials=self.slots if several or searcher is not None else self._max_concurrent,
                ),
                run_config=ray_tune.RunConfig(
                    name=self._job.experiment,
                    storage_path=state,
                    callbacks=[relay],
                    stop=_StopOnError(relay),
                    # A trial's own fault comes back as a result: only a lost worker is an error to Tune.
                    failure_config=ray_tune.FailureConfig(max_failures=_TUNE_RETRIES),
                    checkpoint_config=None
                    if several
                    else ray_tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                    verbose=0,
                ),
            )
            tuner.fit()
            if relay.error is not None:
                raise relay.error
        finally:
            shutil.rmtree(state, ignore_errors=True)


def _connect(address: str | None) -> None:
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a lost worker is our line, not its traceback
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Worker processes import `gcsr` and `tune` as this process does, also from a checkout that is not installed.
    if address is None:
        ray.init(include_dashboard=False, **quiet)
        return
    _probe(address)
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InvalidInputError(f"address: {address!r} cannot be reached: {reason}") from None


def _watch_head() -> None:
    """End this process with one line if the cluster's head dies: Ray would wait a minute and end it without."""
    address = ray.get_runtime_context().gcs_address
    host, _, port = address.rpartition(":")

    def answers() -> bool:
        try:
            socket.create_connection((host, int(port)), timeout=_PROBE_SECONDS).close()
        except OSError:
            return False
        return True

    def watch() -> None:
        missed = 0
        while ray.is_initialized() and missed < _HEAD_PROBES:
            time.sleep(_PROBE_SECONDS)
            missed = 0 if answers() else missed + 1
        if ray.is_initialized():
            line = f"gcsr: the Ray head at {address} stopped answering; every ended trial is stored: with the cluster "
            sys.stderr.write(f"\n{line}up again, the same command with --resume goes on\n")
            sys.stderr.flush()
            os._exit(1)  # the main thread is inside Ray, which does not give up

    if answers():
        threading.Thread(target=watch, daemon=True, name="gcsr-head-watch").start()


def _probe(address: str) -> None:
    """Say at once that nobody answers there: Ray itself tries for minutes."""
    if address in ("auto", "local"):
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
        raise InvalidInputError(f"address: {address!r} is not allowed; expected HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise InvalidInputError(f"address: {address!r} cannot be reached: {reason}") from None
