"""The map of ``tune`` in its docstring is complete, and its modules import no others than it says."""

import re
from pathlib import Path

import tune
from tests.importing import imported

FOLDER = Path(tune.__path__[0])


def layers():
    """The docstring's map: module → number of its layer."""
    found, number = {}, -1
    for line in tune.__doc__.split("::\n")[1].splitlines():
        named = re.match(r"    (\w[\w ]*\w)  +", line)
        number += named is not None
        found |= dict.fromkeys(re.findall(r"\w+", line[named.end() :] if named else line), number)
    return found


def test_every_module_has_its_place():
    assert layers().keys() == {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}


def test_no_module_imports_from_a_layer_below_it():
    layer_of = layers()
    wrong = [
        f"{path.stem} imports {name}"
        for path in FOLDER.glob("*.py")
        if path.stem in layer_of
        for name in imported(path)
        if name.startswith("tune.") and layer_of[name.split(".")[1]] > layer_of[path.stem]
    ]
    assert not wrong
