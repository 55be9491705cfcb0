"""Workers of a local Ray that start at once, as forks of one process that is ready; see `tune.worker_template`."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from gcsr.scratch import scratch_folder
from tune.forked_worker import SOCKET

__all__ = ["announce", "setup_script", "warm_workers"]

_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA, of AMD, of Windows


@contextlib.contextmanager
def warm_workers() -> Iterator[None]:
    """Until the end of the block, a Ray that is started on this machine forks its workers.

    Not where there is a GPU: its trials last longer than imports, and its driver does not outlive a fork. And only on
    Linux: macOS does not let a process go on after a fork that has such libraries.
    """
    if sys.platform != "linux" or any(os.path.exists(device) for device in _DEVICES):
        yield
        return
    with scratch_folder("gcsr-workers-") as folder:
        address = str(folder / "socket")
        paths = os.pathsep.join(path for path in sys.path if path)
        template = subprocess.Popen(
            [sys.executable, "-P", "-m", "tune.worker_template", address],
            env=os.environ | {"PYTHONPATH": paths},
            stdin=subprocess.PIPE,  # ends when this process does, however it ends
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.environ[SOCKET] = address
        try:
            yield
        finally:
            del os.environ[SOCKET]
            template.kill()
            template.communicate()


def setup_script() -> str | None:
    """What Ray is to start for a worker; None for its own script."""
    return str(Path(__file__).with_name("forked_worker.py")) if SOCKET in os.environ else None


def announce(**variables: str) -> None:
    """Tell which environment workers will have, in addition to this process's: Ray can be imported for them now.

    Where it turns out to be another, workers are not forked; where nothing is announced, the first one's is taken.
    """
    with contextlib.suppress(OSError, KeyError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(os.environ[SOCKET])
        connection.send(json.dumps({"environment": os.environ | variables}).encode())
