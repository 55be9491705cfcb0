"""The C sources: built once a machine, whole, and needed by nothing."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from gcsr.compiled import compiled

needs_compiler = pytest.mark.skipif(compiled("memory_pass.c", "off") is None, reason="no C compiler here")


def libraries(cache):
    """What is in the package's own folder below the user's cache folder."""
    return list((cache / "gcsr" / "compiled").iterdir())


def test_without_a_compiler_everything_works(tmp_path):
    code = (
        "import torch; from gcsr import TrialConfig, load_dataset, train; from gcsr.parameter_pass import can_pass;"
        "assert not can_pass([torch.zeros(1)]);"
        "print(train(TrialConfig(mode='ours', lam=1e-3, model='mlp2', epochs=2), load_dataset('digits')).status)"
    )
    no_compiler = os.environ | {"PATH": str(tmp_path)}
    for environment in (no_compiler, os.environ | {"GCSR_NATIVE": "0"}):
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() in ("finished", "collapsed")


@needs_compiler
def test_a_broken_compiler_is_as_good_as_none(tmp_path, monkeypatch):
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert compiled.__wrapped__("memory_pass.c", "off") is None
    assert not libraries(tmp_path / "cache"), "nothing half-built is left"


@needs_compiler
@pytest.mark.parametrize("fails", [1, 2])
def test_a_compiler_that_is_killed_once_is_asked_again_for_the_same(fails, tmp_path, monkeypatch):
    """Other flags round otherwise: a machine that was short of memory for a moment must not end up with them."""
    flaky = tmp_path / "cc"
    asked = tmp_path / "asked"
    once = f'echo "$@" >> {asked}; [ $(wc -l < {asked}) -ne FAILS ] || kill -9 $$; exec cc "$@"'
    flaky.write_text(f"#!/bin/sh\n{once}\n".replace("FAILS", str(fails)))
    flaky.chmod(0o755)
    monkeypatch.setenv("CC", str(flaky))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert compiled.__wrapped__("memory_pass.c", "off") is not None
    assert len({line.split(" -o ")[0] for line in asked.read_text().splitlines()}) == 1


@needs_compiler
def test_flags_that_the_compiler_lacks_are_not_tried_on_the_source(tmp_path, monkeypatch):
    """As OpenMP's, which clang often lacks: every process would compile for seconds, in vain."""
    without = tmp_path / "cc"
    asked = tmp_path / "asked"
    refusing = f'echo "$@" >> {asked}; case "$*" in *-fopenmp*) exit 1;; esac; exec cc "$@"'
    without.write_text(f"#!/bin/sh\n{refusing}\n")
    without.chmod(0o755)
    monkeypatch.setenv("CC", str(without))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert compiled.__wrapped__("memory_pass.c", "off") is not None
    assert len(libraries(tmp_path / "cache")) == 1
    (whole,) = (line for line in asked.read_text().splitlines() if "memory_pass.c" in line)
    assert "-fopenmp" not in whole


@needs_compiler
def test_where_nothing_may_be_loaded_from_the_cache_another_folder_is_taken(tmp_path, monkeypatch):
    """As from a home folder that is mounted noexec."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    forbidden = {tmp_path / "cache" / "gcsr" / "compiled"}
    statvfs = os.statvfs

    def marked(path):
        found = statvfs(path)
        noexec = any(Path(path).is_relative_to(each) for each in forbidden)
        return types.SimpleNamespace(f_flag=found.f_flag | (os.ST_NOEXEC if noexec else 0))

    monkeypatch.setattr("os.ST_NOEXEC", 8, raising=False)  # as on Linux
    monkeypatch.setattr("os.statvfs", marked)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library = compiled.__wrapped__("memory_pass.c", "off")
    assert library.gcsr_block() > 0
    assert not libraries(tmp_path / "cache")
    assert not list(temporary.iterdir()), "what is loaded stays loaded"
    forbidden.add(temporary)
    assert compiled.__wrapped__("memory_pass.c", "off") is None
    assert not list(temporary.iterdir())


@needs_compiler
def test_it_is_built_once_and_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiled.__wrapped__("memory_pass.c", "off") is not None
    built = libraries(tmp_path)
    assert len(built) == 1
    when = built[0].stat().st_mtime_ns
    assert compiled.__wrapped__("memory_pass.c", "off") is not None
    assert built[0].stat().st_mtime_ns == when


@needs_compiler
def test_one_that_is_cut_short_is_built_again(tmp_path):
    """In processes of their own: a library that is cut short kills the process that loads it."""
    code = "from gcsr.compiled import compiled; assert compiled('memory_pass.c', 'off') is not None"

    def load():
        subprocess.run([sys.executable, "-c", code], env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)}, check=True)

    load()
    (library,) = libraries(tmp_path)
    whole = library.stat().st_size
    for size in (0, whole // 2, whole - 1):
        os.truncate(library, size)
        load()
        assert library.stat().st_size == whole


@needs_compiler
def test_a_folder_in_its_place_is_no_library_and_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiled.__wrapped__("memory_pass.c", "off") is not None
    (library,) = libraries(tmp_path)
    library.unlink()
    library.mkdir()
    compiled.__wrapped__("memory_pass.c", "off")  # with other flags or not at all


@needs_compiler
@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_may_write_is_not_used(mode, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "gcsr" / "compiled"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    assert compiled.__wrapped__("memory_pass.c", "off") is not None
    assert not libraries(tmp_path)
    folder.chmod(0o700)
    assert compiled.__wrapped__("memory_pass.c", "off") is not None
    assert libraries(tmp_path)
