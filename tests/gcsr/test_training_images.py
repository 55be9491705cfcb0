"""Batches of the training images: each image once, the same order and crops on every rank, what a network takes."""

import pytest
import torch

from gcsr import TrialConfig, train
from gcsr.augment import PADDING
from gcsr.parallel import Workers
from gcsr.training_images import TrainingImages
from tests.gcsr.comparing import measured


def epochs(data, rank=0, world_size=1, count=2, **fields):
    """What a rank takes of each batch of some epochs."""
    config = TrialConfig(**{"batch_size": 32, "seed": 3} | fields)
    group = None if world_size == 1 else "any"
    images = TrainingImages(config, data, Workers(group, rank, world_size))
    return images, [list(images.batches(images.draw_order())) for _ in range(count)]


def test_every_image_is_in_one_batch_and_each_epoch_has_another_order(digits):
    _, (first, second) = epochs(digits)
    assert [size for size, _ in first] == [32] * 42 + [3]
    orders = [torch.cat([rows for _, (rows,) in batches]) for batches in (first, second)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(1347))
    assert not torch.equal(*orders)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_the_ranks_share_the_batches_of_one_process(world_size, pictures):
    fields = {"dataset": "cifar10", "model": "alexnet"}
    _, alone = epochs(pictures, **fields)
    shares = [epochs(pictures, rank, world_size, **fields)[1] for rank in range(world_size)]
    for epoch, batches in enumerate(alone):
        for index, (size, whole) in enumerate(batches):
            parts = [own[epoch][index] for own in shares]
            assert {part[0] for part in parts} == {size}
            for place, expected in enumerate(whole):
                assert torch.equal(torch.cat([part[1][place] for part in parts]), expected)


def test_augmented_images_are_crops_of_the_padded_ones(pictures):
    images, ((*_, (size, (rows, crops))), _) = epochs(pictures, dataset="cifar10", model="alexnet")
    assert images.ready is None
    taken = images.network_input(rows, crops)
    assert taken.shape == (size, 3, 32, 32)
    padded = torch.nn.functional.pad(pictures.train_images[rows], [PADDING] * 4)
    for image, (top, left, mirrored), found in zip(padded, crops.tolist(), taken, strict=True):
        crop = image[:, top : top + 32, left : left + 32]
        expected = pictures.normalized((crop.flip(2) if mirrored else crop)[None])[0]
        assert torch.equal(found, expected)


def test_others_are_ready(digits):
    images, ((*_, (_, (rows,))), _) = epochs(digits)
    assert torch.equal(images.network_input(rows), digits.normalized(digits.train_images[rows]))


@pytest.mark.parametrize("model", ["mlp2", "tests.gcsr.own_networks:plain"])
def test_more_images_than_memory_should_hold_are_made_ready_batch_by_batch(model, digits, monkeypatch):
    config = TrialConfig(model=model, mode="ours_orig", lam=1e-3, epochs=2)
    ready = train(config, digits)
    monkeypatch.setattr("gcsr.training_images._MOST_READY", digits.train_images.numel() - 1)
    images, (batches, _) = epochs(digits)
    assert images.ready is None
    assert torch.equal(images.network_input(*batches[0][1]), digits.normalized(digits.train_images)[batches[0][1][0]])
    assert measured(train(config, digits)) == measured(ready)
