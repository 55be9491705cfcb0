"""What a config may name: data sets, networks, penalties, modes and precisions. Imports no torch, as `gcsr.config`."""

import re
from typing import Literal, get_args

from gcsr.errors import ConfigError

__all__ = [
    "DATASETS",
    "INITIALIZATIONS",
    "INPUTS",
    "MODES",
    "PRECISIONS",
    "REGULARIZERS",
    "Mode",
    "Regularizer",
    "check_model_name",
    "default_initialization",
    "is_mlp",
]

DATASETS = ("digits", "cifar10", "cifar100", "svhn")

Regularizer = Literal["l1", "l2"]
REGULARIZERS: tuple[Regularizer, ...] = get_args(Regularizer)

Mode = Literal["none", "baseline", "ours", "ours_orig"]
MODES: tuple[Mode, ...] = get_args(Mode)

PRECISIONS = ("fp32", "tf32", "bf16")

INPUTS = ("standardized", "unit")
"""What networks see of images: each channel with mean 0 and deviation 1 over the training images, or 0 to 1."""

INITIALIZATIONS = ("torch", "vgg")
"""What networks begin with: each layer's default in torch, or torchvision's way for VGG (`gcsr.models`)."""

_CONVOLUTIONAL = ("alexnet", "vgg11", "vgg16", "vgg19")
_MODEL_NAMES = f"{', '.join(_CONVOLUTIONAL)} or mlpK (K = 1 to 32 hidden layers, as mlp6)"
_MLP = re.compile(r"mlp([1-9]|[12][0-9]|3[0-2])")


def is_mlp(name: str) -> bool:
    """Whether ``name`` is one of the plain networks ``mlp1`` … ``mlp32``."""
    return _MLP.fullmatch(name) is not None


def default_initialization(name: str) -> str:
    """torchvision's for the network of that name: its AlexNet takes torch's defaults, as plain networks do."""
    return "vgg" if name.startswith("vgg") else "torch"


def check_model_name(name: str) -> None:
    """Raise `ConfigError` unless `gcsr.models.build_model` knows ``name``."""
    if not (name in _CONVOLUTIONAL or is_mlp(name)):
        raise ConfigError("model", name, _MODEL_NAMES)
