"""What was measured of the paper's rows: stores that runs on a GPU left, and what the README says of them."""

import json
from pathlib import Path

import pyarrow.dataset as pads
import pytest

from gcsr import TrialConfig
from tune.aggregate import summarize
from tune.report import render
from tune.schema import CONFIG_FIELDS, EPOCHS
from tune.store import Store

HERE = Path(__file__).parent
README = (HERE.parents[1] / "README.md").read_text(encoding="utf-8")
STORES = ("cifar100-none", "cifar100-alexnet")


def store(name):
    return Store(str(HERE / name))


def curves(name):
    return pads.dataset(HERE / name / "epochs", schema=EPOCHS).to_table().to_pylist()


def report(name):
    return json.loads(render(summarize(store(name).read_trials().table), "json", title=name, progress=""))


def best(settings, **fields):
    return max(s["accuracy_mean"] for s in settings if all(s[name] == value for name, value in fields.items()))


def percent(value):
    return f"{100 * value:.2f}"


@pytest.mark.parametrize("name", STORES)
def test_they_are_whole(name):
    trials, epochs = store(name).read_trials(), curves(name)
    assert not trials.damaged
    rows = trials.table.to_pylist()
    listed = json.loads((HERE / name / "sweep.json").read_text(encoding="utf-8"))["trials"]
    assert sorted(row["trial_id"] for row in rows) == sorted(listed)
    assert len(epochs) == 120 * len(rows)
    assert {row["device"] for row in rows} == {"NVIDIA H200"}
    for row in rows:
        config = TrialConfig(
            **{name: row[name] for name in CONFIG_FIELDS} | {"gamma": row["gamma"] and int(row["gamma"])}
        )
        assert config.trial_id == row["trial_id"], "a config of then is the same trial now"


def test_the_readme_quotes_the_rows():
    found = report("cifar100-alexnet")
    settings = found["settings"]
    lines = {
        "no L1/L2": percent(best(settings, mode="none")),
        **{
            f"{penalty.upper()}, best `baseline` → best `ours`": " → ".join(
                percent(best(settings, mode=mode, regularizer=penalty)) for mode in ("baseline", "ours")
            )
            for penalty in ("l2", "l1")
        },
    }
    for what, value in lines.items():
        assert f"| {value} % |" in next(line for line in README.splitlines() if line.startswith(f"| {what} |"))
    (compression,) = found["compression"]
    assert f"| {compression['compression']:.1f}× |" in README
    for penalty in ("l2", "l1"):
        levels = {level["mode"]: level for level in found["tolerance"] if level["regularizer"] == penalty}
        plain, ours = levels["baseline"], levels["ours"]
        reach = f"λ = {plain['tolerance_lam']:g}, {plain['collapse_lam']:g} / {ours['tolerance_lam']:g}"
        assert any(line.startswith(f"| {penalty.upper()}: ") and reach in line for line in README.splitlines())


def test_the_readme_quotes_what_was_tried_before():
    settings = report("cifar100-none")["settings"]
    defaults = {"augment": True, "inputs": "standardized", "initialization": "torch"}
    tried = [defaults | other for other in ({}, {"augment": False}, {"inputs": "unit"}, {"initialization": "vgg"})]
    said = README[README.index("What the paper leaves open was tried") :][:500]
    assert all(f"{percent(best(settings, **fields))} %" in said for fields in tried)
    assert best(settings, **defaults) == max(s["accuracy_mean"] for s in settings)


def test_a_trial_of_both_is_the_same_to_the_last_bit():
    rows = [{row["trial_id"]: row for row in store(name).read_trials().table.to_pylist()} for name in STORES]
    (common,) = rows[0].keys() & rows[1].keys()

    def curve(name):
        wanted = [column for column in EPOCHS.names if column != "seconds"]
        mine = sorted((row for row in curves(name) if row["trial_id"] == common), key=lambda row: row["epoch"])
        return [[row[column] for column in wanted] for row in mine]

    assert len(curve(STORES[0])) == 120
    assert curve(STORES[0]) == curve(STORES[1])
