"""TensorBoard's own reader opens what a sweep writes."""

import pytest

from tune.job import trial_name
from tune.run_options import RunOptions
from tune.spec import SweepSpec
from tune.store import Store
from tune.sweep import run_sweep

reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

SPEC = SweepSpec(
    experiment="test", grid={"model": "mlp1", "mode": "ours", "lam": 1e-3, "seed": [0, 1], "epochs": 3, "gamma": 1}
)


def test_each_trial_is_a_run_with_its_curves_and_its_config(tmp_path):
    store = Store(str(tmp_path / "out"))
    run_sweep(SPEC, store, RunOptions(executor="inline", tensorboard=True))
    rows = {trial_name(row): row for row in store.read_trials().table.to_pylist()}
    assert {path.name for path in (tmp_path / "out" / "tensorboard").iterdir()} == set(rows)
    assert any(name.startswith("digits-mlp1-l2-ours-lam0.001-seed0-") for name in rows)
    epochs = store.epochs().to_table().to_pylist()
    for name, row in rows.items():
        run = reader.EventAccumulator(str(tmp_path / "out" / "tensorboard" / name))
        run.Reload()
        for curve in ("test_accuracy", "pi", "train_loss", "lam_effective"):
            mine = {e["epoch"]: e[curve] for e in epochs if e["trial_id"] == row["trial_id"]}
            found = {event.step: event.value for event in run.Scalars(curve)}
            assert found == pytest.approx(mine), curve
        times = [event.wall_time for event in run.Scalars("pi")]
        assert times == sorted(times)
        assert times[-1] <= row["finished_at"].timestamp() + 1e-3
        plugin = run.PluginTagToContent("hparams")
        assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(plugin)
        assert b"lam" in plugin["_hparams_/session_start_info"]
