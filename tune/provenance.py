"""Where and with what a run was made: noted in the store by every run, shown by the report."""

import functools
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["commit", "package_version", "provenance"]

_PACKAGES = ("gcsr", "torch", "torchvision", "numpy", "ray", "optuna", "pyarrow", "scipy")


def provenance() -> dict[str, Any]:
    """This machine, its software and the time, as JSON values."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "packages": {name: found for name in _PACKAGES if (found := package_version(name)) is not None},
    }


@functools.cache
def package_version(package: str) -> str | None:
    """The installed version; None if the package is not installed. Looked up once: it takes milliseconds."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of a checkout that is run in place, with ``+`` if files were changed; None elsewhere.

    A job's code is a copy of a checkout: whoever submitted it says which in ``GCSR_COMMIT``.
    """
    folder = Path(__file__).resolve().parent
    git = ["git", "-C", str(folder)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return os.environ.get("GCSR_COMMIT")
    if head.returncode:
        return os.environ.get("GCSR_COMMIT")
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _processor() -> str:
    otherwise = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return otherwise
    # On ARM it says no name.
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), otherwise)
