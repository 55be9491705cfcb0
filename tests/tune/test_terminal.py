"""Printing where letters are missing, or where nothing can be written: the work goes on."""

import errno
import io
import os
import subprocess
import sys

import pytest

from tune.cli import main
from tune.terminal import Terminal, make_forgiving

GCSR = (sys.executable, "-m", "tune.cli")
BARE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_what_the_terminal_has_no_letter_for_ends_nothing():
    """Of several workers the first one speaks, in a process of its own: π while it trains, – in its results."""
    command = [*GCSR, "train", "--model", "mlp1", "--epochs", "1", "--workers", "2"]
    done = subprocess.run(command, env=os.environ | BARE, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"val_accuracy      ?" in done.stdout


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_help_needs_no_greek(encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([*GCSR, "train", "--help"], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert ("λ, the regularization strength" if encoding == "utf-8" else "?, the") in done.stdout.decode(encoding)


def test_a_page_is_written_in_the_encoding_that_it_names(tmp_path, monkeypatch):
    grid = ["--set", "model=mlp1", "--set", "lam=[1e-3]", "--set", "regularizer=l2", "--set", "seed=[0]"]
    folder = str(tmp_path)
    assert main(["sweep", "digits", "--executor", "inline", "--out", folder, *grid, "--set", "epochs=1"]) == 0
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", errors="replace")
    monkeypatch.setattr(sys, "stdout", stdout)
    assert main(["report", folder, "--format", "html"]) == 0
    stdout.flush()
    assert "λ" in stdout.buffer.getvalue().decode("utf-8")


def test_what_forgives_already_stays_as_it_is():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    for each in (stream, io.StringIO(), None):
        make_forgiving(each)
    assert stream.errors == "backslashreplace"


def test_progress_that_cannot_be_written_ends_nothing(monkeypatch):
    """As on a full disk, or on a terminal that was closed; results on stdout must not get lost so."""

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("stderr", "stdout"):
        monkeypatch.setattr(sys, name, Full())
    progress = Terminal(stderr=True)
    for line in ("one of three", "two of three"):
        progress.print(line)
    with pytest.raises(OSError, match="No space left"):
        Terminal().print("results")
