"""Data sets as tensors: digits as shipped, the hold-out, and what is no trial's data."""

import dataclasses

import numpy as np
import pytest
import torch

from gcsr import ConfigError, TrialConfig, load_dataset, train
from gcsr.cohort import train_cohort
from tests.tune.data_sets import write_data_set


def test_digits():
    data = load_dataset("digits")
    assert data.train_images.shape == (1347, 1, 8, 8)
    assert data.test_images.shape == (450, 1, 8, 8)
    assert data.input_shape == (1, 8, 8)
    assert set(data.test_labels.tolist()) == set(range(10))
    seen = data.normalized(data.train_images)
    assert seen.mean().item() == pytest.approx(0, abs=1e-5)
    assert seen.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_unit_inputs_are_from_0_to_1():
    data = load_dataset("digits", inputs="unit")
    seen = data.normalized(data.train_images)
    assert (seen.min().item(), seen.max().item()) == (0, 1)
    assert torch.equal(data.train_images, load_dataset("digits").train_images)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_the_inputs_of_pictures_by_their_definition(name, tmp_path):
    images = torch.from_numpy(write_data_set(tmp_path, name=name)["train_images"]).permute(0, 3, 1, 2).double()
    unit, standardized = (load_dataset(name, inputs=inputs, root=tmp_path) for inputs in ("unit", "standardized"))
    torch.testing.assert_close(unit.normalized(unit.train_images).double(), images / 255, rtol=1e-6, atol=0)
    mean, deviation = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), correction=0, keepdim=True)
    expected = (images - mean) / deviation
    found = standardized.normalized(standardized.train_images).double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert unit.classes == (100 if name == "cifar100" else 10)


def test_a_channel_that_is_the_same_everywhere_in_training_is_not_blown_up_elsewhere(tmp_path):
    arrays = write_data_set(tmp_path, name="mine")
    arrays["train_images"][..., 1] = 201
    np.savez(tmp_path / "mine.npz", **arrays)
    data = load_dataset("mine.npz", root=tmp_path)
    seen = data.normalized(data.test_images)
    assert not data.normalized(data.train_images)[:, 1].any()  # not even by rounding: π would count its weights
    torch.testing.assert_close(seen[:, 1], (data.test_images[:, 1] - 201.0) / 256)
    assert seen[:, 0].abs().max() < 5


def test_hold_out_is_fixed_disjoint_and_complete():
    whole, one, two = load_dataset("digits"), load_dataset("digits", holdout=0.2), load_dataset("digits", holdout=0.2)
    assert torch.equal(one.val_images, two.val_images)
    assert (len(one.val_images), len(one.train_images)) == (269, 1078)

    def images(*tensors):
        return sorted(bytes(image.flatten().tolist()) for tensor in tensors for image in tensor)

    assert images(one.val_images, one.train_images) == images(whole.train_images)
    assert torch.equal(one.test_images, whole.test_images)


@pytest.mark.parametrize(
    "wrong", [{"inputs": "standardised"}, {"holdout": -0.5}, {"holdout": "x"}, {"holdout": 1}], ids=str
)
def test_what_is_no_hold_out_and_no_inputs_is_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigError, match=f"^{name}: {value!r} is not allowed; expected "):
        load_dataset("digits", **wrong)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dataset": "cifar10", "model": "alexnet"}, "dataset: 'cifar10' is not allowed; expected digits"),
        ({"holdout": 0.2}, "holdout: 0.2 is not allowed; expected 0, as in the data given"),
    ],
)
def test_data_of_another_trial_are_refused(digits, fields, words):
    with pytest.raises(ConfigError, match=words):
        train(TrialConfig(**fields), digits)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (lambda d: {"train_labels": d.train_labels - 1}, "train_labels: -1 is not allowed; expected 0 to 9"),
        (lambda d: {"test_labels": d.test_labels + 1}, "test_labels: 10 is not allowed; expected 0 to 9"),
        (lambda d: {"train_labels": d.train_labels.repeat(2)}, r"train_images: \[1347, 1, 8, 8\].*\[2694, 1, 8, 8\]"),
        (lambda d: {"test_images": d.test_images[:, :, :4, :4]}, r"test_images: \[450, 1, 4, 4\].*\[450, 1, 8, 8\]"),
        (
            lambda d: {"train_labels": d.train_labels[:, None]},
            r"train_labels: 'torch.int64 \[1347, 1\]'.* torch.int64 \[N",
        ),
        (lambda d: {"train_labels": d.train_labels.int()}, "train_labels: 'torch.int32.*expected torch.int64"),
        (lambda d: {"train_images": d.train_images[:0], "train_labels": d.train_labels[:0]}, "train_images: .0, 1, 8"),
        (lambda d: {"scale": d.scale.flatten()}, r"scale: \[1\] is not allowed; expected \[1, 1, 1, 1\]"),
        (lambda d: {"shift": d.shift.expand(1, 3, 1, 1)}, r"shift: \[1, 3, 1, 1\] is not allowed"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(digits, changed, words):
    data = dataclasses.replace(digits, **changed(digits))
    for training in (lambda config: train(config, data), lambda config: train_cohort([config], data)):
        with pytest.raises(ConfigError, match=words):
            training(TrialConfig(model="mlp1", epochs=1))
