"""Tensors and plain values as the bytes of a file, read without unpickling code."""

import io
import zipfile
from typing import Any

import torch

__all__ = ["GPU_FAULTS", "packed", "unpacked"]

GPU_FAULTS = (torch.OutOfMemoryError, torch.AcceleratorError)
"""What a GPU that is full or has failed raises: no fault of a file or a state."""


def packed(values: dict[str, Any]) -> bytes:
    """What `unpacked` reads."""
    buffer = io.BytesIO()
    torch.save(values, buffer)
    return buffer.getvalue()


def unpacked(data: bytes, device: torch.device) -> dict[str, Any]:
    """What was packed, with its tensors on ``device``.

    Raises:
        ValueError: it is damaged, or something else; with one short line.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:  # torch writes checksums and reads none
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"checksum of {damaged}")
        values = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
        if not isinstance(values, dict):
            raise ValueError(f"holds {type(values).__name__}")
    except GPU_FAULTS:
        raise
    except Exception as error:  # torch raises a different class for every kind of damage
        text = str(error).strip()
        raise ValueError(text.splitlines()[0][:100] if text else type(error).__name__) from None
    return values
