"""Dependencies point one way: cluster → tune → gcsr."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "gcsr": {"ray", "optuna", "pyarrow", "tune", "cluster", "click", "pydantic", "rich", "scipy", "statsmodels"},
    "tune": {"cluster"},
}


def test_gcsr_alone_loads_nothing_of_the_service():
    code = "import sys, gcsr; print(sorted({'ray','optuna','pyarrow','tune','cluster','sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_module_imports_what_lies_above_it(package):
    for path in (ROOT / package).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & FORBIDDEN[package], path
