"""What a local Ray starts for a worker: asks `tune.worker_template` for a fork, which takes this process's place.

A script by itself, as it is to start at once. Where it gets no fork, it becomes the worker that Ray would have started.
"""

import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path

SOCKET = "GCSR_WORKER_TEMPLATE"  # environment variable: where the template listens

_ENVIRONMENT = "--serialized-runtime-env-context="
_LANGUAGE = "--language="
_PATIENCE_SECONDS = 30.0  # Ray's own is a minute


def _asks_for_fork(arguments: list[str]) -> bool:
    """Whether there is a fork now."""
    own = [text for text in arguments if text.startswith((_ENVIRONMENT, _LANGUAGE))]
    worker = [text for text in arguments if text not in own]
    given = next((text.removeprefix(_ENVIRONMENT) for text in own if text.startswith(_ENVIRONMENT)), "{}")
    context = {"env_vars": {}} | json.loads(given)
    if f"{_LANGUAGE}PYTHON" not in own or not worker[0].endswith(".py"):
        return False  # of another language, or with options of Python itself
    if any(context.get(name) for name in ("command_prefix", "override_worker_entrypoint")):
        return False
    if context.get("py_executable", sys.executable) != sys.executable:
        return False
    request = {
        "arguments": worker,
        "environment": dict(os.environ),
        "own_environment": context["env_vars"],
        "folder": os.getcwd(),
        "blocked_signals": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "oom_score_adj": Path("/proc/self/oom_score_adj").read_text(),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(_PATIENCE_SECONDS)
        connection.connect(os.environ[SOCKET])
        socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
        return bool(connection.recv(16))  # nothing, if it declines


if __name__ == "__main__":
    arguments = sys.argv[1:]
    try:
        forked = _asks_for_fork(arguments)
    except (OSError, ValueError, KeyError):
        forked = False
    if not forked:
        script = next(text for text in arguments if text.endswith("default_worker.py"))
        os.execv(sys.executable, [sys.executable, str(Path(script).with_name("setup_worker.py")), *arguments])
