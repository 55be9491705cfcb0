import pytest

import tune.units
from gcsr import TrialConfig
from tune.runs import RunOptions
from tune.spec import SweepSpec, load_spec
from tune.store import Store
from tune.sweep import run_sweep
from tune.trial import SweepJob
from tune.units import is_stacked, run_unit, units

MIXED = SweepSpec(
    experiment="test",
    grid={"model": ["mlp1", "mlp2"], "width": 0.25, "epochs": 2, "mode": ["baseline", "ours_orig"], "seed": [0, 1, 2]},
).trials()


def job(tmp_path, **fields):
    return SweepJob(experiment="test", store=str(tmp_path), **fields)


@pytest.mark.parametrize("size", [1, 2, 4, 5, 6, 100])
def test_units_are_a_partition_of_what_can_be_stacked(size):
    found = units(MIXED, size, gpu=False)
    assert sorted(c.trial_id for unit in found for c in unit) == sorted(c.trial_id for c in MIXED)
    assert all(len(unit) <= size and len({c.model for c in unit}) == 1 for unit in found)
    assert max(map(len, found)) - min(map(len, found)) <= 1
    assert len(found) == 2 * -(-6 // size)


@pytest.mark.parametrize(
    ("fields", "cohort", "stacked"),
    [
        ({"model": "mlp6"}, "auto", True),
        ({"model": "mlp7"}, "auto", True),
        ({"model": "mlp6", "width": 2.0}, "auto", False),  # out of the cache
        ({"model": "mlp6", "width": 2.0}, 2, True),
        ({"model": "mlp6"}, 1, False),
        ({"model": "mlp6", "dataset": "cifar10"}, "auto", False),  # long: it needs checkpoints
        ({"model": "alexnet", "dataset": "cifar10"}, "auto", False),
    ],
)
def test_what_is_stacked(fields, cohort, stacked):
    assert is_stacked(TrialConfig(**fields), cohort) is stacked


def test_auto_cuts_the_digits_sweep_in_eights_and_keeps_its_order():
    trials = load_spec("digits").trials()
    found = units(trials, "auto", gpu=False)
    assert [config for unit in found for config in unit] == trials
    assert {len(unit) for unit in found} == {7, 8}


def test_the_bits_do_not_depend_on_who_is_trained_together(tmp_path):
    configs = [
        TrialConfig(model="mlp6", mode=mode, regularizer=penalty, lam=2e-3, epochs=8)
        for mode in ("baseline", "ours_orig")
        for penalty in ("l1", "l2")
    ]

    def metrics(parts):
        outcomes = [outcome for part in parts for outcome in run_unit(part, job(tmp_path))]
        return [(o.row["train_loss"], o.row["weight_abs_mean"], o.row["sparsity"]) for o in outcomes]

    together = metrics([configs])
    assert together == metrics([configs[:1], configs[1:]]) == metrics([[config] for config in configs])


def test_a_cohort_writes_what_single_trials_write(tmp_path):
    spec = SweepSpec(
        experiment="test", grid={"model": "mlp2", "width": 0.5, "epochs": 3, "lam": 1e-3, "seed": [0, 1, 2]}
    )
    tables = []
    for cohort in (1, 2):
        store = Store(str(tmp_path / str(cohort)))
        run_sweep(spec, store, RunOptions(executor="inline", cohort=cohort))
        tables.append(store.read_trials().table.to_pylist())
        assert len(store.epochs().to_table()) == 9
    for alone, together in zip(*tables, strict=True):
        same = ("trial_id", "status", "imposed_fraction", "test_accuracy", "parameters", "world_size")
        assert [alone[name] for name in same] == [together[name] for name in same]
        assert alone["train_loss"] == pytest.approx(together["train_loss"], rel=1e-4)


def test_a_cohort_that_fails_falls_back_to_single_trials(tmp_path, monkeypatch):
    real = tune.units.train_cohort

    def broken(configs, data, **options):
        if len(configs) > 1 or configs[0].seed == 1:
            raise RuntimeError("out of memory")
        return real(configs, data, **options)

    monkeypatch.setattr(tune.units, "train_cohort", broken)
    configs = [TrialConfig(model="mlp1", width=0.1, epochs=1, seed=seed) for seed in range(2)]
    outcomes = run_unit(configs, job(tmp_path))
    assert [o.row["trial_id"] for o in outcomes] == [c.trial_id for c in configs]
    assert [o.row["status"] == "failed" for o in outcomes] == [False, True]
    assert "out of memory" in outcomes[1].row["error"]
