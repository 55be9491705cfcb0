"""Random crop and horizontal flip of a whole batch at once, on its device, from a given generator."""

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["crop_and_flip", "draw_crops"]

PADDING = 4


def draw_crops(n: int, generator: torch.Generator, padding: int = PADDING) -> Tensor:
    """Where to crop ``n`` images and which to mirror: int64 ``[n, 3]``, for `crop_and_flip`.

    Args:
        n: number of images.
        generator: on the device that the images are on.
        padding: shifts are uniform over ``-padding … padding``; every second image is mirrored on average.
    """
    device = generator.device
    shifts = torch.randint(2 * padding + 1, (n, 2), generator=generator, device=device)
    return torch.cat((shifts, torch.randint(2, (n, 1), generator=generator, device=device)), 1)


def crop_and_flip(images: Tensor, crops: Tensor, padding: int = PADDING) -> Tensor:
    """The paper's augmentation (§3): zero-pad, crop back at a random place, mirror every second image on average.

    Args:
        images: ``[N, C, H, W]`` of any dtype; pixels of value 0 are black.
        crops: ``[N, 3]`` of `draw_crops`.
        padding: pixels on each side, as given there.

    Returns:
        A new tensor of the same shape and dtype.
    """
    n, channels, height, width = images.shape
    padded = pad(images, (padding, padding, padding, padding))
    device = images.device
    top, left, flip = crops[:, :1], crops[:, 1:2], crops[:, 2:].bool()
    rows = top + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(n, width)
    columns = left + torch.where(flip, width - 1 - columns, columns)
    batch = torch.arange(n, device=device).view(n, 1, 1, 1)
    channel = torch.arange(channels, device=device).view(1, channels, 1, 1)
    return padded[batch, channel, rows.view(n, 1, height, 1), columns.view(n, 1, 1, width)]
