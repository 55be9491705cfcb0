"""Trial configs: identity, resolution, refusal."""

import dataclasses
import pickle

import pytest

from gcsr import ConfigError, TrialConfig


def test_the_identity_is_stable():
    # If this changes, every existing store is orphaned: change it knowingly.
    assert TrialConfig(mode="ours", lam=6e-3).trial_id == "4206606bfdd6f811"
    assert TrialConfig(lam=1).trial_id == TrialConfig(lam=1.0).trial_id
    assert TrialConfig(lam=-0.0).trial_id == TrialConfig(lam=0.0).trial_id


def test_fields_that_a_mode_does_not_read_cannot_tell_trials_apart():
    assert TrialConfig(mode="baseline", lam=0.1, mu=0.3, gamma=7) == TrialConfig(mode="baseline", lam=0.1)
    assert TrialConfig(mode="ours", lam=0.1, mu=0.3) == TrialConfig(mode="ours", lam=0.1)
    assert TrialConfig(mode="ours", lam=0.1, gamma_threshold=0.9) == TrialConfig(mode="ours", lam=0.1)
    assert TrialConfig(mode="ours", lam=0.1, gamma=7) != TrialConfig(mode="ours", lam=0.1)


@pytest.mark.parametrize("field", ["seed", "lam", "lr", "epochs", "width", "holdout", "batch_size", "momentum"])
def test_every_other_field_does(field):
    config = TrialConfig(lam=0.1)
    other = dataclasses.replace(config, **{field: getattr(config, field) / 2 + 1 if field == "width" else
                                           {"seed": 1, "epochs": 7, "batch_size": 64}.get(field, 0.25)})  # fmt: skip
    assert other.trial_id != config.trial_id


def test_so_do_fields_that_came_later():
    config = TrialConfig(dataset="cifar10", model="alexnet")
    others = [dataclasses.replace(config, inputs="unit"), dataclasses.replace(config, initialization="vgg")]
    assert len({config.trial_id, *(other.trial_id for other in others)}) == 3
    assert (config.initialization, TrialConfig(dataset="svhn", model="vgg11").initialization) == ("torch", "vgg")


def test_the_papers_recipe_is_the_default():
    config = TrialConfig(dataset="cifar100", model="vgg16")
    recipe = (config.batch_size, config.lr, config.momentum, config.lr_decay, config.lr_decay_epochs)
    assert recipe == (128, 0.05, 0.9, 0.5, 30)
    assert (config.dropout, config.augment, config.epochs) == (0.5, True, 300)
    assert not TrialConfig(dataset="svhn", model="vgg11").augment
    assert (TrialConfig(mode="ours").gamma, TrialConfig(mode="ours_orig").mu) == (5, 0.6)


def test_a_network_and_data_of_ones_own():
    config = TrialConfig(dataset="cifar-like.npz", model="vggs.mine:build")
    assert (config.epochs, config.dropout, config.augment, config.initialization) == (300, 0.0, False, "torch")
    assert TrialConfig(dataset="digits", model="mine:net").dropout == 0
    assert TrialConfig(dataset="birds.npz", model="mlp3", augment=True).augment
    for field, value in (("width", 2.0), ("dropout", 0.5), ("initialization", "vgg")):
        with pytest.raises(ConfigError, match=f"^{field}: .* for vggs.mine:build"):
            dataclasses.replace(config, **{field: value})
    for field, value in (("dataset", "my birds.npz"), ("dataset", "digits.npz"), ("model", "my-networks:small")):
        with pytest.raises(ConfigError, match=f"^{field}: .*your own \\(.*of letters, digits"):  # what is wrong with it
            TrialConfig(**{field: value})


BAD = [
    ("dataset", "../birds.npz"), ("dataset", "a/b.npz"), ("dataset", ".npz"), ("dataset", "cifar10.npz"),
    ("dataset", ["birds.npz"]), ("model", ":net"), ("model", "mine:"), ("model", "a b:net"), ("model", "mine:net()"),
    ("model", "../mine:net"), ("model", "a:" + "b" * 200), ("model", "a:b:c"),
    ("dataset", "mnist"), ("model", "resnet"), ("model", "vgg16"), ("model", 3), ("width", 0.0), ("width", 17),
    ("regularizer", "l3"), ("regularizer", "none"), ("mode", "yours"), ("mode", None), ("lam", -1e-9),
    ("lam", float("nan")), ("lam", float("inf")), ("lam", "1e-3"), ("lam", True), ("lam", None), ("mu", 1.01),
    ("lam", 10**400), ("lam", 1e31),
    ("gamma", -1), ("gamma", 1.5), ("gamma", "soon"), ("gamma_threshold", 2), ("seed", -1), ("seed", 0.5),
    ("seed", 2**63), ("epochs", 0), ("epochs", True), ("batch_size", 0), ("lr", 0), ("lr", 1e9), ("momentum", 1.0),
    ("lr_decay", 0), ("lr_decay_epochs", 0), ("dropout", 1), ("dropout", 0.5), ("augment", True), ("augment", 1),
    ("holdout", 0.95), ("inputs", "raw"), ("inputs", None), ("initialization", "he"), ("initialization", "vgg"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD)
def test_bad_values_are_named(field, value):
    with pytest.raises(ConfigError) as caught:
        TrialConfig(**{field: value})
    line = str(caught.value)
    assert line.startswith(f"{field}: ")
    assert "expected" in line
    assert "\n" not in line
    assert len(line) < 300


def test_errors_survive_the_way_back_from_a_worker():
    error = pickle.loads(pickle.dumps(ConfigError("lam", -1, "a number")))
    assert (error.field, error.value, str(error)) == ("lam", -1, "lam: -1 is not allowed; expected a number")


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrialConfig().lam = 1.0
