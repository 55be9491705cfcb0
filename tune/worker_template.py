"""The process that the workers of a local Ray are forked from, with all that they need imported.

To import Ray Tune and torch takes a worker more seconds than a digits trial, and a trial of several workers needs
eight processes. So it is done once, while Ray starts, and each worker is a fork of this process. A fork is an ordinary
worker in every other way: it has the environment, the arguments and the output of the process that Ray started for it
(`tune.forked_worker`), and Ray knows it by its own number.

Whatever this process cannot vouch for it declines, and that worker starts as Ray would have started it.
"""

import contextlib
import json
import os
import resource
import runpy
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from selectors import EVENT_READ, DefaultSelector
from types import SimpleNamespace
from typing import Any

from tune.forked_worker import SOCKET
from tune.imports import import_for_good

__all__ = ["serve"]

_LONGEST = 1 << 18  # bytes of a request; Linux sends no longer ones
_BEFORE_RAY = ("torch", "pandas", "pyarrow.parquet", "tune.trial", "tune.units")
_UNREAD = ("RAY_LD_PRELOAD_ON_WORKERS",)  # by Ray's library
_OF_RAY = ("ray._private.workers.default_worker", "ray.tune", "tune.trainable")


def serve(path: str) -> list[str] | None:
    """Fork a worker for each request, until the process that started this one ends.

    A request without a worker's arguments tells the environment that workers will have (`tune.warm_workers.announce`).

    Args:
        path: of the socket.

    Returns:
        In a fork, the worker's script and its arguments; otherwise None.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, DefaultSelector() as selector:
        listener.bind(path)
        listener.listen(64)
        selector.register(listener, EVENT_READ)
        selector.register(sys.stdin, EVENT_READ)  # ends when the process ends that holds its other side
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # as Ray has it when a worker imports torch
        import_for_good(*_BEFORE_RAY)
        known: Mapping[str, str] | None = None
        while sys.stdin not in [key.fileobj for key, _ in selector.select()]:
            connection, _ = listener.accept()
            with connection, _received(connection) as (request, files):
                variables = _of_ray(request["environment"])
                if known is None:  # Ray's library reads them once, as it is imported
                    known = variables
                    _import_ray(known)
                if "arguments" in request and variables == known and os.fork() == 0:
                    _become(request, files, connection)
                    return list(request["arguments"])
    return None


@contextlib.contextmanager
def _received(connection: socket.socket) -> Iterator[tuple[Mapping[str, Any], list[int]]]:
    """A request, and the standard input, output and error of who asks."""
    data, files, _, _ = socket.recv_fds(connection, _LONGEST, 3)
    try:
        yield json.loads(data), files
    finally:
        for file in files:
            os.close(file)


def _of_ray(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith("RAY_") and name not in _UNREAD}


def _import_ray(variables: Mapping[str, str]) -> None:
    for name in _of_ray(os.environ):
        del os.environ[name]
    os.environ.update(variables)
    with _ids_from_the_system():
        import_for_good(*_OF_RAY)
    if _two_random_ids_of_forks_are_equal():
        sys.exit("Ray's random numbers began before the fork: its workers would all name their objects the same")
    signal.signal(signal.SIGCHLD, _bury)


@contextlib.contextmanager
def _ids_from_the_system() -> Iterator[None]:
    """Modules that define actors take random ids from Ray's generator, which all forks would then go on with."""
    import ray.actor

    ids: Any = ray.actor.ActorClassID
    ray.actor.ActorClassID = SimpleNamespace(from_random=lambda: ids(os.urandom(ids.size())))
    try:
        yield
    finally:
        ray.actor.ActorClassID = ids


def _two_random_ids_of_forks_are_equal() -> bool:
    from ray._raylet import JobID, PlacementGroupID

    ids = []
    for _ in range(2):
        ours, theirs = os.pipe()
        fork = os.fork()
        if fork == 0:
            os.write(theirs, PlacementGroupID.of(JobID.from_int(1)).binary())
            os._exit(0)
        os.close(theirs)
        with open(ours, "rb") as pipe:
            ids.append(pipe.read())
        os.waitpid(fork, 0)
    return ids[0] == ids[1]


def _become(request: Mapping[str, Any], files: list[int], connection: socket.socket) -> None:
    """Make of this fork what Ray started."""
    try:
        connection.send(b"forked")
    except OSError:  # it waited too long, and has started by itself
        os._exit(0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)  # Ray ends a worker with its process group
    for target, file in enumerate(files):
        os.dup2(file, target)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked_signals"])
    resource.setrlimit(resource.RLIMIT_NOFILE, request["open_files"])  # Ray raises it as it starts
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"] | request["own_environment"])
    os.environ.pop(SOCKET, None)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write(request["oom_score_adj"])  # where memory runs out a worker is to die, and not Ray
    import numpy as np

    np.random.seed()  # Python's own random numbers begin anew by themselves


def _bury(*_: object) -> None:
    """Let go of workers that ended, or Ray would take them for alive."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    arguments = serve(sys.argv[1])
    if arguments is not None:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
