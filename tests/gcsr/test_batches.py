"""Augmented batches by one kernel: those of `gcsr.augment`."""

import pytest
import torch

pytest.importorskip("triton")

from gcsr.augment import crop_and_flip, draw_crops
from gcsr.batches import augmented
from tests.gcsr.comparing import moved
from tests.gcsr.triton_tools import DEVICE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_are_the_plain_ones(pictures, dtype):
    data = moved(pictures, DEVICE)
    generator = torch.Generator(DEVICE).manual_seed(0)
    crops = draw_crops(30, generator)
    crops[0] = torch.tensor([0, 8, 1], device=DEVICE)  # the corners
    crops[1] = torch.tensor([8, 0, 0], device=DEVICE)
    rows = torch.randperm(100, generator=generator, device=DEVICE)[:30]
    ours = augmented(data, rows, crops, dtype)
    plain = data.normalized(crop_and_flip(data.train_images[rows], crops)).to(dtype)
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)
    assert ours.is_contiguous(memory_format=torch.channels_last)
