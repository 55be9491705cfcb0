"""The connection to Ray: a local one of our own, or a running cluster's, reached, authenticated and watched."""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from gcsr import InvalidInputError
from tune.filesystem import one_line
from tune.terminal import complain

# Ray reads these when it is imported or started, and its workers inherit them.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # our store is the log; saves half the overhead
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # Tune's workers have an environment of their own
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative data paths mean what they say
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its banner ignores verbose=0
os.environ.setdefault(
    "TUNE_GLOBAL_CHECKPOINT_S", "1e9"
)  # its experiment state is never restored: the store is the truth
# Who comes a moment too early for a socket of Ray's tries again soon, not after a second; for ten seconds, as before.
os.environ.setdefault("RAY_raylet_client_connect_timeout_milliseconds", "20")
os.environ.setdefault("RAY_raylet_client_num_connect_attempts", "500")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C must reach us, not be swallowed

import ray

from tune.local_ray import start_local_ray

__all__ = ["connected", "probe"]

_PROBE_SECONDS = 5.0
_HEAD_PROBES = 3  # in a row that fail before the head counts as dead


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a running cluster (see `probe`), or start Ray on this machine and stop it at the end of the block.

    If the cluster's head dies, this process ends with one line.

    Raises:
        InvalidInputError: the cluster cannot be reached, or does not let us in.
        OSError: Ray cannot be started on this machine.
    """
    # In the main thread Ray would put its own handler of SIGTERM in place of ours, and its forks may lose a Ctrl-C.
    # Its processes die with the thread that started them: it stays until the end.
    with ThreadPoolExecutor(1, "gcsr-ray") as thread:
        starting = thread.submit(_connect, address)
        try:
            try:
                starting.result()
            except KeyboardInterrupt:
                complain("gcsr: interrupted while Ray starts: it is stopped as soon as it has started")
                raise
            _take_back_sigterm()
            _watch_head()
            yield
        finally:
            wait([starting])
            ray.shutdown()


def _take_back_sigterm() -> None:
    """Ray's library takes a SIGTERM for a crash, and prints where it hit before it calls the handler that was there."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _connect(address: str | None) -> None:
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a lost worker is our line, not its traceback
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Worker processes import `gcsr` and `tune` as this process does, also from a checkout that is not installed.
    if address in (None, "local"):
        start_local_ray(**quiet)
    else:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            raise InvalidInputError(f"address: {address!r} cannot be reached: {one_line(error)}") from None


def _watch_head() -> None:
    """Ray would wait a minute for a head that died, and end the process without a word."""
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
            complain(f"\n{line}up again, the same command with --resume goes on")
            os._exit(1)  # the main thread is inside Ray, which does not give up

    if answers():
        threading.Thread(target=watch, daemon=True, name="gcsr-head-watch").start()


def probe(address: str) -> None:
    """Say at once that nobody answers there: Ray itself tries for minutes.

    Raises:
        InvalidInputError: nobody does, or it is no address.
    """
    if address in ("auto", "local"):
        return
    host, colon, port = address.rpartition(":")
    if "://" in host or not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
        raise InvalidInputError(
            f"address: {address!r} is not allowed; expected HOST:PORT of a cluster that this machine is a node of, or "
            "auto (gcsr submit runs a sweep on one from elsewhere)"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise InvalidInputError(f"address: {address!r} cannot be reached: {reason}") from None
