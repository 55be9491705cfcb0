"""What a training leaves beside its numbers: the network, and a file to keep it in."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gcsr.archive import packed, unpacked
from gcsr.config import TrialConfig
from gcsr.data import Dataset, normalized
from gcsr.errors import InvalidInputError, shortened
from gcsr.models import ConvolutionalNetwork, network_of
from gcsr.randomness import undisturbed

__all__ = ["TrainedNetwork", "load_network"]

_FORMAT = 1


class TrainedNetwork(nn.Module):
    """A trial's network with the normalization that it was trained with, in evaluation mode.

    Args:
        config: the trial.
        network: its network, which this one takes over.
        input_shape: ``(C, H, W)`` of its images.
        classes: number of classes.
        scale, shift: as in `gcsr.data.Dataset`.

    Attributes:
        config: the trial.
        network: takes normalized images.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        config: TrialConfig,
        network: nn.Module,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        scale: Tensor,
        shift: Tensor,
    ) -> None:
        super().__init__()
        self.config, self.network = config, network
        self._input_shape, self._classes = input_shape, classes
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        if isinstance(network, ConvolutionalNetwork):
            network.features.fused = False  # its kernels are for training on one kind of GPU
        self.eval()

    @classmethod
    def of(cls, config: TrialConfig, network: nn.Module, data: Dataset) -> "TrainedNetwork":
        """The network of a trial that was trained on ``data``."""
        return cls(
            config,
            network,
            input_shape=data.input_shape,
            classes=data.classes,
            scale=data.scale.clone(),
            shift=data.shift.clone(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[N, classes]`` of images ``[N, C, H, W]``.

        Args:
            images: uint8 or float, with the values that the data set has: 0 to 255, in digits 0 to 16.
        """
        logits: Tensor = self.network(normalized(images, self.scale, self.shift))
        return logits

    def to_bytes(self) -> bytes:
        """A file for `load_network`; in it ``weights`` is the ``state_dict`` of the network."""
        return packed(
            {
                "network_format": _FORMAT,
                "trial_id": self.config.trial_id,
                "config": self.config.to_dict(),
                "input_shape": list(self._input_shape),
                "classes": self._classes,
                "scale": _alone(self.scale),
                "shift": _alone(self.shift),
                "weights": {name: _alone(value) for name, value in self.network.state_dict().items()},
            }
        )


def _alone(value: Any) -> Any:
    """A tensor without the larger one that it may be a view of, which would be saved with it."""
    if not isinstance(value, Tensor):  # a network of one's own may keep anything
        return value
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def load_network(path: str | os.PathLike[str]) -> TrainedNetwork:
    """The network that ``gcsr train --save`` or ``--save-networks`` of a sweep wrote, on the CPU.

    One's own network is built by its ``MODULE:FUNCTION``, which must be there to be imported.

    Raises:
        InvalidInputError: the file is damaged, or no network's; or the network cannot be built.
        OSError: the file cannot be read.
    """
    shown = shortened(str(path))
    try:
        saved = unpacked(Path(path).read_bytes(), torch.device("cpu"))
        if saved["network_format"] != _FORMAT:
            raise ValueError(f"format {saved['network_format']} instead of {_FORMAT}")
        config = TrialConfig(**saved["config"])
        channels, height, width = saved["input_shape"]
        input_shape, classes, weights = (channels, height, width), saved["classes"], saved["weights"]
        scale, shift = saved["scale"], saved["shift"]
    except (KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise InvalidInputError(f"network: {shown} is no network of gcsr, or damaged ({reason})") from None
    with undisturbed(torch.device("cpu"), "fp32"):
        network = network_of(config, input_shape, classes)
    try:
        network.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        text = " ".join(str(error).split())[:200]
        raise InvalidInputError(f"network: {shown} has no weights for what {config.model} builds: {text}") from None
    return TrainedNetwork(config, network, input_shape=input_shape, classes=classes, scale=scale, shift=shift)
