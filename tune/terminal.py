"""Talking to a person: when nobody listens any more, the talk ends, and never the work."""

import contextlib
import io
import os
import sys
from types import TracebackType
from typing import TextIO

import click
from rich.console import Console

__all__ = ["Terminal", "columns", "complain", "make_forgiving", "say"]


class Terminal(Console):
    """A rich console that falls silent where rich would end the process: when its pipe is closed.

    On stderr, where no results are, also for other reasons: a full disk, a terminal that was closed.
    """

    def on_broken_pipe(self) -> None:
        """See rich."""
        self.quiet = True
        _silence(sys.stderr if self.stderr else sys.stdout)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See rich: the end of each output."""
        try:
            super().__exit__(kind, error, trace)
        except OSError:
            if not self.stderr:
                raise
            self.quiet = True


def make_forgiving(stream: TextIO | None) -> None:
    """Have it write ``?`` for what its encoding lacks (λ, ±, a file's name), instead of ending the process."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
        stream.reconfigure(errors="replace")


def say(text: str | bytes, *, nl: bool = True) -> None:
    """Print a result on stdout; to nobody, if a pipe like ``| head`` was closed."""
    try:
        click.echo(text, nl=nl)
    except BrokenPipeError:
        _silence(sys.stdout)


def complain(text: str) -> None:
    """Print a line on stderr, if anybody takes it."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def columns(otherwise: int) -> int:
    """Of the terminal that stdout is; where it is none, or closed, as many as said."""
    console = Console()
    return console.width if console.is_terminal else otherwise


def _silence(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # also for what the interpreter flushes at its end
