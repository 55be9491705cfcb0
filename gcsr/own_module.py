"""Where the networks that people bring come from: the files of their modules."""

import hashlib
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

__all__ = ["source_digest", "sources"]

_INSTALLED = ("site-packages", "dist-packages")  # folders of what pip and Debian install


class _Finder(ModuleFinder):
    """Finds what a module imports, by what is written in it."""

    def find_module(self, name: str, path: Any, parent: Any = None) -> Any:
        try:
            return super().find_module(name, path, parent)
        except AttributeError:  # a folder without __init__.py
            raise ImportError(name) from None


def sources(module: str, folder: Path) -> dict[str, Path]:
    """The files that a module is made of: its own, and those of all that it imports from the same folder.

    Nothing is run: an import whose name is not written in the code is not seen, nor is one of a folder without
    ``__init__.py``.

    Args:
        module: its name.
        folder: where its top-level module or package lies.

    Returns:
        By the modules' names; empty if it is not there, or cannot be read.
    """
    finder = _Finder(path=[str(folder)], excludes=["gcsr"])
    try:
        finder.import_hook(module)
    except (ImportError, SyntaxError, ValueError, OSError):
        return {}
    files = {name: getattr(found, "__file__", None) for name, found in finder.modules.items()}
    return {name: Path(file) for name, file in files.items() if file is not None}


def source_digest(name: str) -> str | None:
    """SHA-256 of what a network's module is made of: tells that it was changed. None if it has no file.

    Of an installed module only its own file is looked at.

    Args:
        name: ``MODULE:FUNCTION``.
    """
    module = name.partition(":")[0]
    try:
        found, top = find_spec(module), find_spec(module.partition(".")[0])
        if found is None or found.origin is None or top is None:
            return None
        folder = _folder(top)
        files = {} if folder.name in _INSTALLED else sources(module, folder)
        if len(files) < 2:
            return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()
        digests = (f"{each} {hashlib.sha256(file.read_bytes()).hexdigest()}\n" for each, file in sorted(files.items()))
        return hashlib.sha256("".join(digests).encode()).hexdigest()
    except (ImportError, OSError, ValueError):  # the latter where a module knows not how it came, as __main__
        return None


def _folder(top: ModuleSpec) -> Path:
    """Where a top-level module or package lies."""
    if top.submodule_search_locations:
        return Path(next(iter(top.submodule_search_locations))).parent
    return Path(top.origin or "").parent
