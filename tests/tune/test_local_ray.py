"""A Ray of our own: who may use it, what there is of it, and that it cannot be started."""

import os
import subprocess
import sys

import pytest

from gcsr import InvalidInputError
from tune.ray_connection import connected

STARTED = """
import os, sys
import psutil
os.umask(0o022)
from tune.ray_connection import connected
import ray
from ray.util.state import get_actor
from ray.util.state.exception import RayStateApiException
with connected(sys.argv[1] or None):
    assert ray.get(ray.remote(num_cpus=0)(lambda: os.environ["RAY_AUTH_MODE"]).remote()) == "token"
    running = [" ".join(p.cmdline()) for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]
    assert any("raylet" in line for line in running)
    unneeded = ("autoscaler", "dashboard.py", "log_monitor")  # to start and end them would take seconds of each sweep
    assert not [line for line in running if any(name in line for name in unneeded)]
    try:
        get_actor("0" * 32, address=ray.get_runtime_context().gcs_address, timeout=10)  # others may run beside
    except RayStateApiException:
        pass  # there is no dashboard to answer; were there no word of it, Ray would ask for 40 seconds
    else:
        raise AssertionError
"""


@pytest.mark.parametrize(("before", "address"), [(None, "local"), ("0" * 64, "")])
def test_its_secret_is_for_its_owner_only(before, address, tmp_path):
    token = tmp_path / ".ray" / "auth_token"
    if before is not None:  # as Ray itself leaves it
        token.parent.mkdir()
        token.write_text(before)
        token.chmod(0o644)
    known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", STARTED, address]
    subprocess.run(command, env=known | {"HOME": str(tmp_path)}, check=True, timeout=300)
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(token.read_text()) == 64
    assert before in (None, token.read_text())


def test_without_a_home_folder_there_is_no_place_for_it(monkeypatch):
    """As in a container that knows no user of its number: one line, before Ray is started."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # what it gives where there is none
    with pytest.raises(InvalidInputError, match="HOME: is not set"), connected(None):
        pass


@pytest.mark.parametrize(("variable", "value"), [("RAY_AUTH_TOKEN_PATH", "/nowhere"), ("RAY_TMPDIR", "/dev/null")])
def test_a_ray_that_cannot_start_is_one_line(variable, value, tmp_path, monkeypatch):
    monkeypatch.setenv(variable, value)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tune.cli", "sweep", "digits", "--out", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert ended.stderr.startswith("gcsr: Ray cannot be started on this machine: ")
    assert "resume with: gcsr sweep digits" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not out.exists()
