"""The connection to Ray, while it is made."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.tune.conftest import title


def is_ray(process):
    return "gcs_server" in title(process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_ray_starts_ends_the_sweep_with_the_line_that_resumes(number, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tune.cli", "sweep", "digits", "--out", str(out)]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while started.poll() is None and not any(map(is_ray, psutil.Process(started.pid).children())):
        time.sleep(0.02)
    started.send_signal(number)
    try:
        _, err = started.communicate(timeout=120)
    finally:
        started.kill()
    assert started.returncode == 130
    said = err.splitlines()
    assert said[0] == "gcsr: interrupted while Ray starts: it is stopped as soon as it has started"
    assert "resume with: gcsr sweep digits" in said[1]
    assert len(said) == 2
