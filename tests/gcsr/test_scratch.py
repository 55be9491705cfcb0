"""Temporary folders: the dead's are removed, the living's are not."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gcsr.scratch import scratch_folder

HOLDS = """
import time
from gcsr.scratch import scratch_folder
with scratch_folder("held-") as folder:
    (folder / "file").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_a_folder_lives_as_long_as_its_process(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDS], stdout=subprocess.PIPE, text=True)
    held = Path(process.stdout.readline().strip())
    with scratch_folder("held-") as own, scratch_folder("held-") as another:
        assert {path.name for path in tmp_path.iterdir()} == {held.name, own.name, another.name}
    assert (held / "file").exists()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert held.exists()
    with scratch_folder("held-") as own:
        assert list(tmp_path.iterdir()) == [own]
    assert not any(tmp_path.iterdir())


def test_what_is_nobodys_scratch_folder_stays(tmp_path):
    begin = f"held-{os.uname().nodename}-"
    names = {"elsewhere", "other-1", "held-another.host-1", f"{begin}unlocked", f"{begin}link"}
    (tmp_path / f"{begin}link").symlink_to("elsewhere")
    for name in names - {f"{begin}link"}:
        (tmp_path / name).mkdir()
        if name != f"{begin}unlocked":
            (tmp_path / name / ".lock").touch()
    with scratch_folder("held-"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == names
    assert (tmp_path / "elsewhere" / ".lock").exists()


@pytest.mark.parametrize("when", ["mkdtemp", "flock"])
def test_a_new_folder_that_another_takes_for_left_is_given_up(tmp_path, monkeypatch, when):
    made, flock, taken = tempfile.mkdtemp, fcntl.flock, []

    def take(at):
        if at == when and not taken:
            taken.extend(tmp_path.iterdir())
            shutil.rmtree(taken[0])

    def making(prefix):
        folder = made(prefix=prefix)
        take("mkdtemp")
        return folder

    def locking(handle, how):
        take("flock")
        flock(handle, how)

    monkeypatch.setattr(tempfile, "mkdtemp", making)
    monkeypatch.setattr(fcntl, "flock", locking)
    with scratch_folder("held-") as folder:
        assert taken
        assert list(tmp_path.iterdir()) == [folder]
