"""Whether kernels in Triton can be used."""

import functools
import os
import shutil
import sysconfig
from importlib.util import find_spec

import torch

from gcsr.compiled import native_allowed

__all__ = ["has_triton"]


def has_triton(device_type: str) -> bool:
    """Whether kernels in Triton run on devices of this type, and are allowed (``GCSR_NATIVE``)."""
    return device_type == "cuda" and native_allowed() and _installed()


@functools.cache
def _installed() -> bool:
    # Triton compiles what launches a kernel with a C compiler and Python's headers, which Debian keeps apart.
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = os.path.exists(os.path.join(sysconfig.get_path("include", "posix_prefix"), "Python.h"))
    return torch.version.cuda is not None and find_spec("triton") is not None and compiler is not None and headers
