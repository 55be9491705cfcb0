"""Random crop and horizontal flip of a whole batch at once, on its device, from a given generator."""

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["crop_and_flip"]


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """The paper's augmentation (§3): zero-pad, crop back at a random place, flip every second image on average.

    Args:
        images: ``[N, C, H, W]`` of any dtype; pixels of value 0 are black.
        generator: on the images' device.
        padding: pixels on each side; shifts are uniform over ``-padding … padding``.

    Returns:
        A new tensor of the same shape and dtype.
    """
    n, channels, height, width = images.shape
    padded = pad(images, (padding, padding, padding, padding))
    device = images.device
    top = torch.randint(2 * padding + 1, (n, 1), generator=generator, device=device)
    left = torch.randint(2 * padding + 1, (n, 1), generator=generator, device=device)
    flip = torch.randint(2, (n, 1), generator=generator, device=device, dtype=torch.bool)
    rows = top + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(n, width)
    columns = left + torch.where(flip, width - 1 - columns, columns)
    batch = torch.arange(n, device=device).view(n, 1, 1, 1)
    channel = torch.arange(channels, device=device).view(1, channels, 1, 1)
    return padded[batch, channel, rows.view(n, 1, height, 1), columns.view(n, 1, 1, width)]
