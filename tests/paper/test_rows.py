"""What was measured of the paper's rows: stores that runs on a GPU left, and what the README says of them."""

import json
import math
from collections import Counter
from pathlib import Path

import pyarrow.dataset as pads
import pytest

from gcsr import TrialConfig
from gcsr.collapse import WINDOW, has_collapsed
from gcsr.records import EpochRecord
from tune.aggregate import summarize
from tune.report import render
from tune.schema import CONFIG_FIELDS, EPOCHS
from tune.store import Store

HERE = Path(__file__).parent
README = (HERE.parents[1] / "README.md").read_text(encoding="utf-8")
STORES = ("cifar100-none", "cifar100-none-300", "cifar100-alexnet")


def store(name):
    return Store(str(HERE / name))


def curves(name):
    return pads.dataset(HERE / name / "epochs", schema=EPOCHS).to_table().to_pylist()


def report(name):
    return json.loads(render(summarize(store(name).read_trials().table), "json", title=name, progress=""))


def best(settings, **fields):
    fitting = [s for s in settings if all(s[name] == value for name, value in fields.items())]
    return max(fitting, key=lambda s: s["accuracy_mean"])


def percent(value):
    return f"{100 * value:.2f}"


@pytest.mark.parametrize("name", STORES)
def test_they_are_whole(name):
    trials, epochs = store(name).read_trials(), curves(name)
    assert not trials.damaged
    rows = trials.table.to_pylist()
    listed = json.loads((HERE / name / "sweep.json").read_text(encoding="utf-8"))["trials"]
    missing = {*listed} - {row["trial_id"] for row in rows}
    assert len(missing) == len(listed) - len(rows) == (17 if name == "cifar100-alexnet" else 0)
    ran = Counter(row["trial_id"] for row in epochs)
    assert {row["device"] for row in rows} == {"NVIDIA H200"}
    for row in rows:
        given_up = row["status"] == "collapsed" and ran[row["trial_id"]] == WINDOW + 1
        assert given_up or ran[row["trial_id"]] == row["epochs"]
        config = TrialConfig(
            **{name: row[name] for name in CONFIG_FIELDS} | {"gamma": row["gamma"] and int(row["gamma"])}
        )
        assert config.trial_id == row["trial_id"], "a config of then is the same trial now"


@pytest.mark.parametrize("name", STORES)
def test_trials_that_collapsed_could_have_been_given_up_and_no_others(name):
    statuses = {row["trial_id"]: row["status"] for row in store(name).read_trials().table.to_pylist()}
    of = {trial: [] for trial in statuses}
    for row in sorted(curves(name), key=lambda row: row["epoch"]):
        of[row.pop("trial_id")].append(EpochRecord(**row))
    for trial, records in of.items():
        ends = [end for end in range(1, len(records) + 1) if has_collapsed(records[:end], math.log(100))]
        assert bool(ends) == (statuses[trial] == "collapsed")
        assert min(ends, default=0) <= 2 * WINDOW


def test_the_readme_quotes_the_rows():
    found = report("cifar100-alexnet")

    def quoted(what, setting):
        interval = f"{percent(setting['accuracy_mean'])} ± {percent(setting['accuracy_ci95'])} %"
        line = next(line for line in README.splitlines() if line.startswith(f"| {what} |"))
        return line.endswith(f"| {interval} | {setting['n']} |")

    assert quoted("no L1/L2", best(found["settings"], mode="none"))
    for penalty in ("l2", "l1"):
        for mode in ("baseline", "ours"):
            setting = best(found["settings"], mode=mode, regularizer=penalty)
            assert quoted(f"{penalty.upper()}, best `{mode}`", setting)
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
    said = " ".join(README[README.index("What the paper leaves open was tried") :][:600].split())
    assert all(f"{percent(best(settings, **fields)['accuracy_mean'])} %" in said for fields in tried)
    assert best(settings, **defaults) == best(settings)
    longer = sorted(curves("cifar100-none-300"), key=lambda row: row["epoch"])
    reached, at_135 = (percent(longer[epochs - 1]["test_accuracy"]) for epochs in (300, 135))
    assert f"300 reach {reached} % (one seed," in said
    assert f"and {at_135} % after 135 of them" in said


def test_the_trial_without_l1_and_l2_is_the_same_to_the_last_bit_in_every_run():
    def curve(name):
        (trial,) = (
            row["trial_id"]
            for row in store(name).read_trials().table.to_pylist()
            if {column: row[column] for column in same} == same
        )
        wanted = [column for column in EPOCHS.names if column not in ("seconds", "trial_id")]
        mine = sorted((row for row in curves(name) if row["trial_id"] == trial), key=lambda row: row["epoch"])
        return [[row[column] for column in wanted] for row in mine[:120]]

    same = {"mode": "none", "seed": 0, "inputs": "standardized", "initialization": "torch", "augment": True}
    first, *others = map(curve, STORES)
    assert len(first) == 120
    assert others == [first, first]
