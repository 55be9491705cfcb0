"""What code imports: as it runs, and as it is written."""

import ast
import subprocess
import sys
from pathlib import Path

__all__ = ["ROOT", "imported", "loaded"]

ROOT = Path(__file__).parents[1]


def loaded(code):
    """What a fresh process prints, in words."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def imported(path):
    """Full names of what a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
