"""Augmented batches of pictures on NVIDIA GPUs, by one kernel: what `gcsr.augment` and normalization do in many."""

import torch
from torch import Tensor

from gcsr.augment import PADDING
from gcsr.data import Dataset
from gcsr.picture_kernels import batch_kernel

__all__ = ["augmented"]

_SIZE = 1024


def augmented(data: Dataset, rows: Tensor, crops: Tensor, dtype: torch.dtype) -> Tensor:
    """Network input for some rows of the training images, cropped and mirrored.

    Args:
        data: on a GPU.
        rows: int64 ``[B]``.
        crops: int64 ``[B, 3]`` of `gcsr.augment.draw_crops`.
        dtype: float32 or bfloat16.

    Returns:
        ``[B, C, H, W]``, channels-last.
    """
    channels, height, width = data.input_shape
    out = torch.empty(
        len(rows), channels, height, width, dtype=dtype, device=rows.device, memory_format=torch.channels_last
    )
    with torch.cuda.device_of(out):
        batch_kernel[(-(-out.numel() // _SIZE),)](
            data.train_images.contiguous(),
            rows.contiguous(),
            crops.contiguous(),
            data.scale,
            data.shift,
            out,
            out.numel(),
            channels,
            height,
            width,
            PADDING,
            SIZE=_SIZE,
            enable_fp_fusion=False,
        )
    return out
