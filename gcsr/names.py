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
    "check_dataset_name",
    "check_model_name",
    "default_initialization",
    "is_convolutional",
    "is_mlp",
    "is_own_dataset",
    "is_own_network",
]

DATASETS = ("digits", "cifar10", "cifar100", "svhn")
"""The data sets that gcsr knows; a user's own is named after its file, ``NAME.npz``."""

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
_MODEL_NAMES = (
    f"{', '.join(_CONVOLUTIONAL)}, mlpK (K = 1 to 32 hidden layers, as mlp6) or MODULE:FUNCTION, which builds your own "
    "(of letters, digits, _ and .)"
)
_DATASET_NAMES = (
    f"one of {', '.join(DATASETS)}, or NAME.npz, which holds your own (another name, of letters, digits, ., _ and -)"
)
_MLP = re.compile(r"mlp([1-9]|[12][0-9]|3[0-2])")
_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_OWN_NETWORK = re.compile(rf"(?=.{{1,120}}$){_NAME}(\.{_NAME})*:{_NAME}(\.{_NAME})*")
_OWN_DATASET = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,79})\.npz")


def is_mlp(name: str) -> bool:
    """Whether ``name`` is one of the plain networks ``mlp1`` … ``mlp32``."""
    return _MLP.fullmatch(name) is not None


def is_convolutional(name: str) -> bool:
    """Whether ``name`` is one of the paper's convolutional networks."""
    return name in _CONVOLUTIONAL


def is_own_network(name: str) -> bool:
    """Whether ``name`` is ``MODULE:FUNCTION``, as of a network that a user brings (`gcsr.own_network`)."""
    return _OWN_NETWORK.fullmatch(name) is not None


def is_own_dataset(name: str) -> bool:
    """Whether ``name`` is ``NAME.npz``, as of a data set that a user brings; none that gcsr knows is named so."""
    found = _OWN_DATASET.fullmatch(name)
    return found is not None and found[1] not in DATASETS


def default_initialization(name: str) -> str:
    """torchvision's for the network of that name: its AlexNet takes torch's defaults, as plain networks do."""
    return "vgg" if is_convolutional(name) and name.startswith("vgg") else "torch"


def check_model_name(name: str) -> None:
    """Raise `ConfigError` unless ``name`` is one that `gcsr.models.build_model` takes."""
    if not (is_convolutional(name) or is_mlp(name) or is_own_network(name)):
        raise ConfigError("model", name, _MODEL_NAMES)


def check_dataset_name(name: str) -> None:
    """Raise `ConfigError` unless ``name`` is one that `gcsr.arrays.load_arrays` takes."""
    if not (name in DATASETS or is_own_dataset(name)):
        raise ConfigError("dataset", name, _DATASET_NAMES)
