"""What a job takes with it to the cluster: the code that runs here, with its changes, and the spec. Nothing else.

Files are chosen by what they are, not taken by the folder: no secret that lies about in a checkout can travel.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cluster
import gcsr
import tune

__all__ = ["SPEC_FOLDER", "packed"]

SPEC_FOLDER = "submitted"
_SUFFIXES = {".py", ".c", ".yaml", ".html"}  # what pyproject.toml installs


@contextlib.contextmanager
def packed(spec_name: str | None = None, spec_text: str = "") -> Iterator[Path]:
    """A temporary folder that is ready to be a job's working directory.

    Args:
        spec_name: file name of the spec, which is put into `SPEC_FOLDER`; None for a shipped one.
        spec_text: its text.
    """
    with tempfile.TemporaryDirectory(prefix="gcsr-job-") as folder:
        root = Path(folder)
        for package in (gcsr, tune, cluster):
            source = Path(package.__path__[0])
            for path in source.rglob("*"):
                hidden = any(part.startswith((".", "__pycache__")) for part in path.relative_to(source).parts)
                if path.is_file() and path.suffix in _SUFFIXES and not hidden:
                    target = root / package.__name__ / path.relative_to(source)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)
        if spec_name is not None:
            (root / SPEC_FOLDER).mkdir()
            (root / SPEC_FOLDER / spec_name).write_text(spec_text, encoding="utf-8")
        yield root
