"""Counting correct answers in batches that memory suffices for."""

import pytest
import torch

from gcsr.evaluation import CorrectAnswers


@pytest.mark.parametrize(
    ("shape", "at_least", "expected"),
    [
        ((3, 32, 32), 1, [700] * 3),
        ((1, 8, 8), 1, [700] * 3),
        ((3, 64, 64), 1, [234] * 3 + [233] * 6),
        ((3, 64, 64), 1400, [700] * 3),
        ((3, 32, 32), 5000, [700] * 3),
        ((3, 2000, 2000), 1, [1] * 2100),
    ],
)
def test_large_images_are_looked_at_in_smaller_batches(shape, at_least, expected):
    images = torch.zeros((), dtype=torch.uint8).expand(2100, *shape)  # takes no memory
    labels, sizes = torch.arange(2100) % 3, []

    def answers(batch):
        sizes.append(len(batch))
        return torch.zeros(len(batch), dtype=torch.int64)

    counted = CorrectAnswers((), images.device, None, at_least=at_least).count(answers, images, labels)
    assert (counted.item(), sizes) == (700, expected)


def test_a_worker_may_have_no_images():
    counted = CorrectAnswers((), torch.device("cpu"), None)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert counted.count(lambda batch: nothing, torch.zeros(0, 3, 32, 32), nothing) == 0
