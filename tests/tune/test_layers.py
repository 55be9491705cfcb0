"""The map of ``tune`` in its docstring is complete, and its modules import no others than it says."""

import ast
import re
from pathlib import Path

import tune

FOLDER = Path(tune.__path__[0])


def layers():
    """The docstring's map: module → number of its layer."""
    found, number = {}, -1
    for line in tune.__doc__.split("::\n")[1].splitlines():
        named = re.match(r"    (\w[\w ]*\w)  +", line)
        number += named is not None
        found |= dict.fromkeys(re.findall(r"\w+", line[named.end() :] if named else line), number)
    return found


def imported(path):
    """Modules of ``tune`` that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[1] for name in node.names if name.name.startswith("tune."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tune":
            yield from [node.module.split(".")[1]] if "." in node.module else (name.name for name in node.names)


def test_every_module_has_its_place():
    assert layers().keys() == {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}


def test_no_module_imports_from_a_layer_below_it():
    layer_of = layers()
    wrong = [
        f"{path.stem} imports {name}"
        for path in FOLDER.glob("*.py")
        if path.stem in layer_of
        for name in imported(path)
        if layer_of[name] > layer_of[path.stem]
    ]
    assert not wrong
