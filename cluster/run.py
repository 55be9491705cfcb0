"""What a Ray job starts on a cluster: ``python run.py sweep digits --out URI`` is ``gcsr sweep … --address auto``."""

import sys

from tune.cli import main

__all__ = ["cluster_arguments"]


def cluster_arguments(arguments: list[str]) -> list[str]:
    """The command line for a process on the cluster: sweeps join the cluster that is there, unless told otherwise."""
    elsewhere = any(a == "--address" or a.startswith(("--address=", "--executor")) for a in arguments)
    return arguments if arguments[:1] != ["sweep"] or elsewhere else [*arguments, "--address", "auto"]


if __name__ == "__main__":
    sys.exit(main(cluster_arguments(sys.argv[1:])))
