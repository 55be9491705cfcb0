"""The networks of a run are built before anything starts, on this machine or on a cluster's nodes."""

import numpy as np
import pytest
import torch

from gcsr import InvalidInputError, TrialConfig
from gcsr.arrays import load_arrays
from tests.tune.data_sets import write_data_set
from tune.job import SweepJob
from tune.networks import check_networks, network_digests, to_be_built
from tune.node_check import NodeChecks, NodeReport, _look
from tune.store import Store

HERE = "tests.gcsr.own_networks"
OWN = TrialConfig(model=f"{HERE}:plain", lam=0.1, mode="ours")


def test_each_that_may_be_none_is_built_once():
    trials = [
        OWN,
        TrialConfig(model=f"{HERE}:plain", seed=1),
        TrialConfig(model=f"{HERE}:plain", batch_size=64),
        TrialConfig(model=f"{HERE}:normalized", dataset="cifar10"),
        TrialConfig(model="mlp3", dataset="birds.npz"),
        TrialConfig(model="alexnet", dataset="birds.npz"),
        TrialConfig(model="alexnet", dataset="cifar10"),
        TrialConfig(),
    ]
    assert to_be_built(trials) == (trials[0], trials[2], trials[3], trials[5])
    assert list(network_digests(trials)) == [f"{HERE}:normalized", f"{HERE}:plain"]
    assert network_digests([TrialConfig()]) == {}


def test_they_take_the_images_that_they_are_to_be_trained_on(tmp_path):
    arrays = write_data_set(tmp_path, name="birds")
    small = {key: value[:, ::2, ::2] if key.endswith("images") else value for key, value in arrays.items()}
    np.savez(tmp_path / "chicks.npz", **small)

    def check(model, dataset, workers=1):
        check_networks([TrialConfig(model=model, dataset=dataset)], load_arrays(dataset, tmp_path), workers)

    check("alexnet", "birds.npz")
    check(f"{HERE}:normalized", "chicks.npz")
    with pytest.raises(InvalidInputError, match=r"model: 'alexnet' .* shape \(3, 16, 16\)"):
        check("alexnet", "chicks.npz")
    with pytest.raises(InvalidInputError, match=r"failed on images of shape \[3, 16, 16\]"):
        check(f"{HERE}:plain", "chicks.npz")
    with pytest.raises(InvalidInputError, match="workers: 3 is not allowed"):
        check(f"{HERE}:normalized", "birds.npz", workers=3)


@pytest.mark.parametrize(
    ("network", "fields", "workers", "words"),
    [
        ("normalized_by_batch", {"batch_size": 1346}, 1, "cannot learn from a last batch of 1 image"),
        ("normalized_by_batch", {"batch_size": 1212, "holdout": 0.1}, 1, None),
        ("normalized_by_batch", {"batch_size": 1211, "holdout": 0.1}, 1, "cannot learn from a last batch of 1 image"),
        ("normalized_by_batch", {}, 1, None),
        ("Viewing", {"batch_size": 1346}, 1, None),
        ("Viewing", {"batch_size": 1346}, 2, "cannot learn from a last batch of 0 images"),
        ("Viewing", {"batch_size": 449}, 2, None),
        ("around_one_body", {}, 1, "returned weights that it had returned before"),
    ],
)
def test_they_learn_from_the_smallest_batch(network, fields, workers, words):
    config, arrays = TrialConfig(model=f"{HERE}:{network}", **fields), load_arrays("digits")
    if words is None:
        check_networks([config], arrays, workers)
    else:
        with pytest.raises(InvalidInputError, match=words):
            check_networks([config], arrays, workers)


def test_what_one_sets_the_next_does_not_find():
    names = ("of_double_precision_from_now_on", "Viewing", "plain")
    check_networks([TrialConfig(model=f"{HERE}:{name}") for name in names], load_arrays("digits"), 1)
    assert torch.get_default_dtype() == torch.float32


def test_a_node_says_what_is_wrong_with_a_network_and_which_module_it_has(tmp_path):
    job = SweepJob(experiment="test", store=str(tmp_path))
    Store(str(tmp_path)).write_bytes("token", b"")
    assert _look(job, [], [OWN], "token") == NodeReport(digests=network_digests([OWN]))
    assert "KeyError" in _look(job, [], [TrialConfig(model=f"{HERE}:raises")], "token").problem


def test_a_node_whose_module_is_another_is_named(tmp_path):
    checks = NodeChecks(SweepJob(experiment="test", store=str(tmp_path)), [OWN], {"CPU": 1})
    first, second = ({"NodeManagerAddress": address} for address in ("10.0.0.1", "10.0.0.2"))
    assert checks._difference(first, NodeReport(digests={OWN.model: "a" * 64})) is None
    assert checks._difference(second, NodeReport(digests={OWN.model: "b" * 64})) == (
        f"model: the module of {OWN.model} has the sha256 bbbbbbbbbbbb…; expected aaaaaaaaaaaa…, as node 10.0.0.1"
    )
