"""The tolerance level by bisection."""

import math

import pytest

from tune.aggregate import summarize
from tune.cli import main
from tune.run_options import RunOptions
from tune.spec import SweepSpec
from tune.store import Store
from tune.sweep import run_sweep
from tune.tolerance import _Bisection, run_tolerance

GRID = {
    "model": "mlp6",
    "regularizer": "l2",
    "mode": ["none", "baseline", "ours"],
    "lam": [1e-3, 2e-3, 4e-3, 8e-3, 0.016, 0.032],
    "seed": [0, 1],
    "epochs": 15,
}
SPEC = SweepSpec(experiment="test", grid=GRID)
INLINE = RunOptions(executor="inline", resume=True, stop_collapsed=True)


@pytest.mark.parametrize("level", [5e-4, 1e-3, 1.7e-3, 5e-3, 0.0319, 0.032, 1.0])
@pytest.mark.parametrize("precision", [0.01, 0.1, 1.0])
def test_bisection_finds_any_level(level, precision):
    trials = [config for config in SPEC.trials() if config.mode == "baseline"]
    bisection = _Bisection(trials, precision)
    while (configs := bisection.next()) is not None:
        lam = configs[0].lam
        bisection.tell([{"lam": lam, "status": "finished" if lam <= level else "collapsed"} for _ in configs])
    assert bisection.tried <= bisection.at_most
    low, high = bisection.low, bisection.high
    assert low is None or low <= level
    assert high is None or high > level
    if 1e-3 <= level < 0.032:
        assert high / low <= 1 + precision + 1e-9
    else:
        assert (low, high) == ((None, 1e-3) if level < 1e-3 else (0.032, None))


@pytest.mark.parametrize(
    ("bottom", "top", "precision"),
    [(0.012151369, 0.014751366, 0.05), (1.3454815e-3, 0.20285213, 0.01), (1.2993808e-6, 1.336033e-6, 1e-3)],
)
def test_rounding_the_halves_costs_no_more_trials_than_it_says(bottom, top, precision):
    trials = SPEC.replace({"mode": "baseline", "lam": [bottom, top], "seed": 0}).trials()
    for k in range(2000):
        level = bottom * (top / bottom) ** (k / 2000)
        bisection = _Bisection(trials, precision)
        while (configs := bisection.next()) is not None:
            lam = configs[0].lam
            bisection.tell([{"lam": lam, "status": "finished" if lam <= level else "collapsed"}])
        assert bisection.tried <= bisection.at_most


def test_one_seed_that_collapses_is_enough_and_a_failed_one_is_no_answer():
    bisection = _Bisection([config for config in SPEC.trials() if config.mode == "baseline"], 0.1)
    (first,) = bisection.next()
    assert (first.lam, first.seed) == (0.032, 0)
    bisection.tell([{"lam": first.lam, "status": "finished"}])
    (second,) = bisection.next()
    assert (second.lam, second.seed) == (0.032, 1)
    bisection.tell([{"lam": second.lam, "status": "collapsed"}])
    assert bisection.high == 0.032
    (third,) = bisection.next()
    assert third.lam == pytest.approx(math.sqrt(1e-3 * 0.032), rel=1e-3)
    bisection.tell([{"lam": third.lam, "status": "failed"}])
    assert bisection.next() is None
    assert bisection.level().tolerance_lam is None


def test_it_agrees_with_the_grid_at_a_fraction_of_its_trials_and_resumes(tmp_path):
    outcome = run_tolerance(SPEC, Store(str(tmp_path / "t")), INLINE, precision=0.5)
    assert outcome.ran < outcome.grid == 24
    run_sweep(SPEC, Store(str(tmp_path / "g")), INLINE)
    grid = {t.mode: t for t in summarize(Store(str(tmp_path / "g")).read_trials().table).tolerance}
    for level in outcome.levels:
        expected = grid[level.config.mode]
        assert level.tolerance_lam < expected.collapse_lam
        assert level.collapse_lam > expected.tolerance_lam
    for path in list((tmp_path / "t" / "trials").iterdir())[::2]:
        path.unlink()
    again = run_tolerance(SPEC, Store(str(tmp_path / "t")), INLINE, precision=0.5)
    assert 0 < again.ran < outcome.ran
    assert again.levels == outcome.levels
    complete = RunOptions(resume=True, stop_collapsed=True, address="127.0.0.1:1")  # no cluster answers there
    assert run_tolerance(SPEC, Store(str(tmp_path / "t")), complete, precision=0.5).levels == outcome.levels


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precision", "0"], "precision: 0 is not allowed; expected a number from 0.001 to 10"),
        (["--set", "lam=0.1"], "lam: [0.1] is not allowed; expected two values > 0 to search between"),
        (["--set", "mode=none"], "mode: none has no tolerance level"),
    ],
)
def test_bad_input_is_one_clear_line(options, words, tmp_path, capsys):
    assert main(["tolerance", "digits", "--executor", "inline", "--out", str(tmp_path / "o"), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (tmp_path / "o").exists()


def test_the_command_ends_with_the_one_that_comes_next(tmp_path, capsys):
    one = ["--set", "mode=baseline", "--set", "regularizer=l2", "--set", "seed=0", "--set", "epochs=1"]
    out = str(tmp_path / "out")
    assert main(["tolerance", "digits", "--executor", "inline", "--precision", "10", "--out", out, *one]) == 0
    assert capsys.readouterr().out.endswith(f". Next: gcsr report {out}\n")
