"""Augmentation: every image is a crop of the padded one or its mirror, drawn by its own generator."""

import torch

from gcsr.augment import crop_and_flip, draw_crops


def test_every_augmented_image_is_a_crop_or_its_mirror():
    images = torch.randint(1, 256, (40, 3, 8, 8), dtype=torch.uint8)
    changed = crop_and_flip(images, draw_crops(len(images), torch.Generator().manual_seed(0), padding=2), padding=2)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    places = set()
    for index in range(len(images)):
        matches = _matches(padded[index], changed[index])
        assert len(matches) == 1
        places |= matches
    assert {flip for *_, flip in places} == {False, True}
    assert len(places) > 20


def _matches(padded, image):
    found = set()
    for top in range(5):
        for left in range(5):
            crop = padded[:, top : top + 8, left : left + 8]
            found |= {(top, left, flip) for flip in (False, True) if torch.equal(crop.flip(2) if flip else crop, image)}
    return found


def test_augmentation_follows_its_generator():
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    one, two = (crop_and_flip(images, draw_crops(len(images), torch.Generator().manual_seed(3))) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, crop_and_flip(images, draw_crops(len(images), torch.Generator().manual_seed(4))))


def test_shifts_are_uniform_over_the_papers_padding_and_every_second_image_is_mirrored():
    crops = draw_crops(9000, torch.Generator().manual_seed(0))
    for shifts in crops[:, :2].T:
        counts = shifts.bincount()
        assert len(counts) == 9, "from -4 to 4"
        assert counts.min() > 850 and counts.max() < 1150  # 1,000 ± 5 binomial deviations
    assert set(crops[:, 2].tolist()) == {0, 1}
    assert abs(crops[:, 2].double().mean() - 0.5) < 0.03
    image = torch.ones(1, 1, 2, 2, dtype=torch.uint8)
    assert crop_and_flip(image, torch.tensor([[4, 4, 0]])).sum() == 4, "the shift that changes nothing"
