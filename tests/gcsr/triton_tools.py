"""Triton without a GPU: machine code for Hopper by its compiler, and what its interpreter can do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

__all__ = ["DEVICE", "needs_loops", "printed"]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@triton.jit
def _counted(out, n):
    total = 0
    for _ in range(n):
        total += 1
    tl.store(out, total)


def _has_loops() -> bool:
    """Whether kernels may loop here: the interpreter of Triton 3.6 cannot, with NumPy 2.4."""
    out = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    try:
        _counted[(1,)](out, 3)
    except triton.runtime.errors.InterpreterError:
        return False
    return out.item() == 3


needs_loops = pytest.mark.skipif(not _has_loops(), reason="this Triton's interpreter has no loops with this NumPy")


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
