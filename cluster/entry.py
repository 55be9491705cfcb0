"""The console script ``gcsr``: a thin door, so that Ctrl-C is heard while the rest is still being imported."""

import signal

__all__ = ["run"]


def run() -> None:
    """Entry point of the console script."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # else nohup's: it stays ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends the process without the traceback of an import
    from cluster.cli import cli
    from tune.endings import run_as_program

    signal.signal(signal.SIGINT, handler)
    run_as_program(cli)
