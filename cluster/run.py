"""What runs on a cluster: ``python run.py sweep digits --out URI`` is ``gcsr sweep … --address auto`` there.

``ray submit`` copies this one file to the head and starts it; jobs start it as ``python -m cluster.run``.
"""

import os
import sys
from pathlib import Path

from tune.cli import cli
from tune.endings import run_as_program

__all__ = ["cluster_arguments"]

_ON_THE_CLUSTER = ("sweep", "search", "tolerance")


def cluster_arguments(arguments: list[str]) -> list[str]:
    """The command line for a process on the cluster: trials run on the cluster that is there, unless told otherwise."""
    elsewhere = any(a == "--address" or a.startswith(("--address=", "--executor")) for a in arguments)
    if arguments[:1] and arguments[0] in _ON_THE_CLUSTER and not elsewhere:
        return [*arguments, "--address", "auto"]
    return arguments


if __name__ == "__main__":
    # A shell that `ray submit` opens on the head does not know how the cluster was started. Ray is not imported yet.
    if (Path.home() / ".ray" / "auth_token").exists() or os.environ.get("RAY_AUTH_TOKEN"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    run_as_program(cli, cluster_arguments(sys.argv[1:]))
