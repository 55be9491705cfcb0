"""Data sets as tensors: digits as shipped, the hold-out."""

import pytest
import torch

from gcsr import load_dataset


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


def test_hold_out_is_fixed_disjoint_and_complete():
    whole, one, two = load_dataset("digits"), load_dataset("digits", holdout=0.2), load_dataset("digits", holdout=0.2)
    assert torch.equal(one.val_images, two.val_images)
    assert (len(one.val_images), len(one.train_images)) == (269, 1078)

    def images(*tensors):
        return sorted(bytes(image.flatten().tolist()) for tensor in tensors for image in tensor)

    assert images(one.val_images, one.train_images) == images(whole.train_images)
    assert torch.equal(one.test_images, whole.test_images)
