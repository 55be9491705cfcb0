import pytest

import tune.units
from gcsr import TrialConfig
from tune.spec import SweepSpec
from tune.store import Store
from tune.sweep import SweepOptions, run_sweep
from tune.trial import SweepJob
from tune.units import run_unit, unit_size, units

MIXED = SweepSpec(
    experiment="test",
    grid={"model": ["mlp1", "mlp2"], "width": 0.25, "epochs": 2, "mode": ["baseline", "ours_orig"], "seed": [0, 1, 2]},
).trials()


def job(tmp_path, **fields):
    return SweepJob(experiment="test", store=str(tmp_path), **fields)


@pytest.mark.parametrize("size", [1, 2, 4, 5, 6, 100])
def test_units_are_a_partition_of_what_can_be_stacked(size):
    found = units(MIXED, size)
    assert sorted(c.trial_id for unit in found for c in unit) == sorted(c.trial_id for c in MIXED)
    assert all(len(unit) <= size and len({c.model for c in unit}) == 1 for unit in found)
    assert len(found) == 2 * -(-6 // size)
    if size == 1:
        assert [unit[0] for unit in found] == MIXED


@pytest.mark.parametrize(
    ("cohort", "gpu", "trials", "slots", "size"),
    [
        ("auto", False, 100, 2, 1),
        ("auto", True, 100, 1, 32),
        ("auto", True, 10, 4, 3),
        ("auto", True, 0, 4, 1),
        (8, False, 9, 2, 8),
    ],
)
def test_unit_size(cohort, gpu, trials, slots, size, tmp_path):
    assert unit_size(job(tmp_path, cohort=cohort), gpu=gpu, trials=trials, slots=slots) == size


def test_a_cohort_writes_what_single_trials_write(tmp_path):
    spec = SweepSpec(
        experiment="test", grid={"model": "mlp2", "width": 0.5, "epochs": 3, "lam": 1e-3, "seed": [0, 1, 2]}
    )
    tables = []
    for cohort in (1, 2):
        store = Store(str(tmp_path / str(cohort)))
        run_sweep(spec, store, SweepOptions(executor="inline", cohort=cohort))
        tables.append(store.read_trials().table.to_pylist())
        assert len(store.epochs().to_table()) == 9
    for alone, together in zip(*tables, strict=True):
        same = ("trial_id", "status", "imposed_fraction", "test_accuracy", "parameters", "world_size")
        assert [alone[name] for name in same] == [together[name] for name in same]
        assert alone["train_loss"] == pytest.approx(together["train_loss"], rel=1e-4)


def test_auto_measures_once_and_takes_the_faster(tmp_path, monkeypatch):
    configs = [TrialConfig(model="mlp1", width=0.1, epochs=1, lam=1e-3, seed=seed) for seed in range(3)]
    calls = []
    real = tune.units.train_cohort
    monkeypatch.setattr(
        tune.units, "train_cohort", lambda configs, data: calls.append(len(configs)) or real(configs, data)
    )
    for faster, expected in ((True, [3, 3, 3]), (False, [3])):
        calls.clear()
        monkeypatch.setattr(tune.units, "_measured", {})
        monkeypatch.setattr(tune.units, "_faster", lambda alone, together, faster=faster: faster)
        for _ in range(2):
            assert [o.row["status"] for o in run_unit(configs, job(tmp_path, cohort="auto"))] != ["failed"] * 3
        assert calls == expected


def test_a_cohort_that_fails_falls_back_to_single_trials(tmp_path, monkeypatch):
    def broken(configs, data):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(tune.units, "train_cohort", broken)
    configs = [TrialConfig(model="mlp1", width=0.1, epochs=1, seed=seed) for seed in range(2)]
    outcomes = run_unit(configs, job(tmp_path, cohort=2))
    assert [o.row["trial_id"] for o in outcomes] == [c.trial_id for c in configs]
    assert "failed" not in {o.row["status"] for o in outcomes}
