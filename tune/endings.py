"""How a command ends: every outcome and error as one line and an exit code."""

import contextlib
import gc
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence

import click

from gcsr import InvalidInputError
from tune.folder import LostStoreError
from tune.node_data import UnfitNodeError
from tune.passwords import without_password
from tune.terminal import complain, make_forgiving, say

__all__ = [
    "BAD_INPUT",
    "DONE",
    "FAILED",
    "INTERRUPTED",
    "InterruptedRunError",
    "WorkFailedError",
    "command_line",
    "main_of",
    "os_line",
    "resumable",
    "resuming",
    "run_as_program",
]

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


class WorkFailedError(Exception):
    """The work was done and did not succeed: exit code 1, with this line."""


class InterruptedRunError(Exception):
    """Ctrl-C, or a time limit: exit code 130, with this line."""


def command_line() -> str:
    """What was typed, as a shell takes it; without passwords, as terminals and logs keep it."""
    return shlex.join(["gcsr", *map(without_password, sys.argv[1:])])


def resuming(resume: bool) -> str:
    """The command that goes on with what this one began; whoever started a job knows another one for it."""
    known = os.environ.get("GCSR_RESUME_COMMAND")
    if known:
        return known
    left_out = any(without_password(word) != word for word in sys.argv)
    hint = " (without the password: give it again, or in PGPASSWORD or ~/.pgpass)" if left_out else ""
    return command_line() + ("" if resume else " --resume") + hint


@contextlib.contextmanager
def resumable(resume: bool) -> Iterator[None]:
    """Ctrl-C, a failing disk and a failing GPU end the run with the command that goes on."""
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRunError(f"every ended trial is stored; resume with: {resuming(resume)}") from None
    except LostStoreError as error:
        raise WorkFailedError(f"{error}; what it lacks is run again with: {resuming(resume)}") from None
    except (OSError, UnfitNodeError) as error:
        text = os_line(error) if isinstance(error, OSError) else str(error)
        raise WorkFailedError(f"{text}; every ended trial is stored; resume with: {resuming(resume)}") from None


def main_of(group: click.Group, arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code (0 done, 1 failed, 2 bad input, 130 interrupted)."""
    try:
        given = None if arguments is None else list(arguments)
        code = group.main(given, prog_name="gcsr", standalone_mode=False)
        return code if isinstance(code, int) else DONE
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.format_message())
        return BAD_INPUT
    except click.ClickException as error:
        return _end(BAD_INPUT, " ".join(error.format_message().split()))
    except InvalidInputError as error:
        return _end(BAD_INPUT, str(error))
    except WorkFailedError as error:
        return _end(FAILED, str(error))
    except InterruptedRunError as error:
        return _end(INTERRUPTED, f"interrupted; {error}")
    except (click.Abort, KeyboardInterrupt):
        return _end(INTERRUPTED, "interrupted")
    except OSError as error:
        return _end(FAILED, os_line(error))


def run_as_program(group: click.Group, arguments: Sequence[str] | None = None) -> None:
    """Run a command line as a process of its own, and exit."""
    make_forgiving(sys.stdout)
    with contextlib.suppress(OSError):  # a folder that is gone
        sys.path.append(os.getcwd())  # where a user's own network may be; last, so that it hides nothing
    # Batch systems end a job so, and an ssh session that is closed: as Ctrl-C, with the line that resumes.
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
        signal.signal(signal.SIGHUP, _interrupt)
    code = main_of(group, arguments)
    if code == INTERRUPTED:  # batch systems signal twice; while the interpreter ends, that would be the exit code
        for again in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(again, signal.SIG_IGN)
    gc.freeze()  # the interpreter's last collections would walk through all of torch and Ray, for more than a second
    sys.exit(code)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _end(code: int, line: str) -> int:
    complain(f"gcsr: {line}")
    return code


def os_line(error: OSError) -> str:
    """What went wrong, and with which file."""
    text = " ".join((error.strerror or str(error)).split())
    return text + (f": {error.filename}" if error.filename else "")
