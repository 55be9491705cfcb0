"""Machine code for Hopper, by Triton's compiler, without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

__all__ = ["printed"]


def printed(code: str, cache: Path) -> str:
    """What a program prints that compiles kernels; the test is skipped where Triton brings no assembler.

    Args:
        code: the program; a process of its own runs it, as this one may have imported Triton as an interpreter.
        cache: an empty folder.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if "Cannot find ptxas" in done.stderr:
        pytest.skip("Triton brings no assembler here")
    assert done.returncode == 0, done.stderr
    return done.stdout
