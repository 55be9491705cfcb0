"""Files are replaced whole, or not at all."""

import os
import stat

import pytest

from gcsr.files import write_atomically


def test_files_have_the_rights_of_any_new_file(tmp_path):
    mask = os.umask(0o027)
    try:
        with write_atomically(tmp_path / "f") as file:
            file.write(b"x")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640


def test_what_a_link_leads_to_is_replaced_and_keeps_its_rights(tmp_path):
    target, link, missing = tmp_path / "target", tmp_path / "link", tmp_path / "missing"
    target.write_bytes(b"old")
    target.chmod(0o600)
    link.symlink_to("target")
    missing.symlink_to("made")
    for path in (link, missing):
        with write_atomically(path) as file:
            file.write(b"new")
        assert path.is_symlink()
        assert path.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "made", "missing", "target"]


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with write_atomically(pipe) as file:
        file.write(b"content")
    assert os.read(reader, 100) == b"content"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_failing_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(RuntimeError), write_atomically(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
