"""What a sweep would run, before it is started."""

import io

import pytest
from rich.console import Console

from gcsr import TrialConfig
from tune.cli import main
from tune.preview import preview

FIELDS = {"model": "mlp1", "epochs": 3}


def rows(trials, missing):
    """The cells of the table."""
    columns = preview(trials, missing).columns
    return [tuple(str(cell) for cell in row) for row in zip(*(column.cells for column in columns), strict=True)]


def test_a_row_counts_settings_seeds_trials_and_what_is_left():
    plain = [TrialConfig(mode="none", lam=0.0, seed=seed, **FIELDS) for seed in range(2)]
    ours = [
        TrialConfig(mode="ours", lam=lam, gamma=gamma, seed=seed, **FIELDS)
        for lam in (1e-3, 3e-3)
        for gamma in (1, 2)
        for seed in range(3)
    ]
    left = {config.trial_id for config in ours[:5]}
    assert rows([*plain, *ours], left) == [
        ("mlp1 on digits", "l2", "none", "–", "1", "2", "2", "0", "0"),
        ("mlp1 on digits", "l2", "ours", "2 from 0.001 to 0.003", "4", "3", "12", "5", "15"),
    ]


def test_networks_are_told_apart_and_one_lam_is_named():
    trials = [TrialConfig(mode="baseline", lam=2e-3, batch_size=size, **FIELDS) for size in (64, 128)]
    networks, lams = zip(*((row[0], row[3]) for row in rows(trials, set())), strict=True)
    assert networks == ("mlp1 on digits (batch_size 64)", "mlp1 on digits (batch_size 128)")
    assert lams == ("0.002", "0.002")


def test_it_fits_a_narrow_terminal():
    console = Console(width=60, file=io.StringIO())
    console.print(preview([TrialConfig(mode="baseline", lam=2e-3)], set()))
    assert max(map(len, console.file.getvalue().splitlines())) <= 60


def test_a_dry_run_starts_and_writes_nothing_and_refuses_what_a_run_would(capsys, tmp_path):
    out = tmp_path / "out"
    fields = [f"--set={name}={value}" for name, value in (FIELDS | {"mode": "none", "seed": "[0, 1]"}).items()]
    sweep = ["sweep", "digits", "--out", str(out), "--executor", "inline"]
    assert main([*sweep, *fields, "--dry-run"]) == 0
    assert "2 trials, 0 ended before: 2 to run. Nothing was started." in capsys.readouterr().out
    assert not out.exists()
    assert main([*sweep, *fields]) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()
    assert main([*sweep, *fields, "--dry-run"]) == 2
    assert "add --resume" in capsys.readouterr().err
    assert main([*sweep, *fields, "--dry-run", "--resume", "--set", "width=[1, 2]"]) == 0
    assert "4 trials, 2 ended before: 2 to run" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize("wrong", [["--set", "dataset=cifar10", "--set", "model=vgg16"], ["--set", "lam=-1"]])
def test_bad_input_is_refused_all_the_same(wrong, capsys, tmp_path):
    arguments = ["sweep", "digits", "--dry-run", "--out", str(tmp_path / "out"), "--data", str(tmp_path), *wrong]
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("gcsr: ")
