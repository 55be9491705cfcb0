"""What runs on a cluster: ``python run.py sweep digits --out URI`` is ``gcsr sweep … --address auto`` there.

``ray submit`` copies this one file to the head and starts it; jobs start it as ``python -m cluster.run``.
"""

import itertools
import os
import shlex
import sys
from pathlib import Path

from tune.cli import cli
from tune.endings import run_as_program
from tune.passwords import without_password

__all__ = ["COMMANDS", "cluster_arguments"]

COMMANDS = ("sweep", "search", "tolerance")  # that run trials, and so can run them on a cluster


def cluster_arguments(arguments: list[str]) -> list[str]:
    """The command line for a process on the cluster: trials run on the cluster that is there, unless told otherwise."""
    inline = "--executor=inline" in arguments or ("--executor", "inline") in itertools.pairwise(arguments)
    elsewhere = inline or any(word == "--address" or word.startswith("--address=") for word in arguments)
    if arguments[:1] and arguments[0] in COMMANDS and not elsewhere:
        return [*arguments, "--address", "auto"]
    return arguments


def _resuming(arguments: list[str]) -> str:
    """The command that goes on with a ``ray submit``, which hands its words to a shell once more."""
    again = arguments if "--resume" in arguments else [*arguments, "--resume"]
    words = (shlex.quote(shlex.quote(without_password(word))) for word in again)
    return " ".join(["ray submit CLUSTER.yaml cluster/run.py --", *words])


if __name__ == "__main__":
    os.environ.setdefault("GCSR_RESUME_COMMAND", _resuming(sys.argv[1:]))  # gcsr submit and slurm.sh know better
    # A shell that `ray submit` opens on the head does not know how the cluster was started. Ray is not imported yet.
    if (Path.home() / ".ray" / "auth_token").exists() or os.environ.get("RAY_AUTH_TOKEN"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    run_as_program(cli, cluster_arguments(sys.argv[1:]))
