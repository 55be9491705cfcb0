"""The C sources: built once a machine, whole, and needed by nothing."""

import os
import subprocess
import sys

import pytest

from gcsr.compiled import compiled

needs_compiler = pytest.mark.skipif(compiled("memory_pass.c", "off") is None, reason="no C compiler here")


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
    assert not list((tmp_path / "cache" / "gcsr").iterdir()), "nothing half-built is left"


@needs_compiler
def test_a_compiler_that_is_killed_once_is_asked_again_for_the_same(tmp_path, monkeypatch):
    """Other flags round otherwise: a machine that was short of memory for a moment must not end up with them."""
    flaky = tmp_path / "cc"
    asked = tmp_path / "asked"
    once = f'echo "$@" >> {asked}; [ $(wc -l < {asked}) -gt 1 ] || kill -9 $$; exec cc "$@"'
    flaky.write_text(f"#!/bin/sh\n{once}\n")
    flaky.chmod(0o755)
    monkeypatch.setenv("CC", str(flaky))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert compiled.__wrapped__("memory_pass.c", "off") is not None
    first, second = (line.split(" -o ")[0] for line in asked.read_text().splitlines())
    assert first == second


@needs_compiler
def test_it_is_built_once_and_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiled.__wrapped__("memory_pass.c", "off") is not None
    built = list((tmp_path / "gcsr").iterdir())
    assert len(built) == 1
    when = built[0].stat().st_mtime_ns
    assert compiled.__wrapped__("memory_pass.c", "off") is not None
    assert built[0].stat().st_mtime_ns == when
