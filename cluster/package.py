"""What a job takes with it to the cluster: the code that runs here, with its changes, the spec, and the modules of the
user's own networks with what they import from here. Nothing else.

Files are chosen by what they are, not taken by the folder: no secret that lies about in a checkout can travel.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import cluster
import gcsr
import tune
from gcsr import InvalidInputError
from gcsr.names import is_own_network
from gcsr.own_module import sources

__all__ = ["SPEC_FOLDER", "modules_here", "packed"]

SPEC_FOLDER = "submitted"
_PACKAGES = (gcsr, tune, cluster)
_SUFFIXES = {".py", ".c", ".yaml", ".html"}  # what pyproject.toml installs


def modules_here(models: Iterable[str]) -> tuple[str, ...]:
    """Names of the modules and packages in this folder that build networks, or that are imported by those.

    Those of others, as torchvision's, must be installed on the cluster.
    """
    named = {name.partition(":")[0] for name in models if is_own_network(name)}
    found = {each for name in named for each in (name, *sources(name, Path.cwd()))}
    names = {name.partition(".")[0] for name in found} - {package.__name__ for package in _PACKAGES}
    return tuple(sorted(name for name in names if Path(f"{name}.py").is_file() or Path(name).is_dir()))


@contextlib.contextmanager
def packed(spec_name: str | None = None, spec_text: str = "", modules: Collection[str] = ()) -> Iterator[Path]:
    """A temporary folder that is ready to be a job's working directory.

    Args:
        spec_name: file name of the spec, which is put into `SPEC_FOLDER`; None for a shipped one.
        spec_text: its text.
        modules: of `modules_here`.

    Raises:
        InvalidInputError: a module is not in this folder.
    """
    with tempfile.TemporaryDirectory(prefix="gcsr-job-") as folder:
        root = Path(folder)
        for package in _PACKAGES:
            _copy_package(Path(package.__path__[0]), root / package.__name__, _SUFFIXES)
        for name in modules:
            if Path(f"{name}.py").is_file():
                shutil.copyfile(f"{name}.py", root / f"{name}.py")
            elif Path(name).is_dir():
                _copy_package(Path(name), root / name, {".py"})
            else:
                raise InvalidInputError(
                    f"model: {name}.py is not in {Path.cwd()}; expected the folder that the job was submitted from"
                )
        if spec_name is not None:
            (root / SPEC_FOLDER).mkdir()
            (root / SPEC_FOLDER / spec_name).write_text(spec_text, encoding="utf-8")
        yield root


def _copy_package(source: Path, target: Path, suffixes: Collection[str]) -> None:
    for path in source.rglob("*"):
        hidden = any(part.startswith((".", "__pycache__")) for part in path.relative_to(source).parts)
        if path.is_file() and path.suffix in suffixes and not hidden:
            copied = target / path.relative_to(source)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copied)
