"""One trial, completely described: a frozen, validated object with a stable identity."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable
from typing import Any, Literal

from gcsr.errors import ConfigError
from gcsr.gate import GAMMA, GAMMA_THRESHOLD, MAX_LAM, MU, Gate
from gcsr.names import (
    INITIALIZATIONS,
    INPUTS,
    MODES,
    PRECISIONS,
    REGULARIZERS,
    Mode,
    Regularizer,
    check_dataset_name,
    check_model_name,
    default_initialization,
    is_convolutional,
    is_own_network,
)

__all__ = ["COHORT_FIELDS", "MOST_INTERLEAVED", "TrialConfig", "cohort_key"]

MOST_INTERLEAVED = 16  # trials of a process, where `gcsr.interleaving` finds out how many; whoever plans needs no torch

# fmt: off
COHORT_FIELDS = (
    "dataset", "model", "width", "epochs", "batch_size", "dropout", "augment", "inputs", "precision", "holdout",
)
"""What trials must have in common to be trained together by `gcsr.cohort.train_cohort`."""
# fmt: on


def _number(allowed: str, test: Callable[[float], bool]) -> Callable[[str, Any], float]:
    def check(field: str, value: Any) -> float:
        if type(value) not in (int, float) or not -sys.float_info.max <= value <= sys.float_info.max or not test(value):
            raise ConfigError(field, value, allowed)
        return float(value) + 0.0  # not -0.0, which is equal and written otherwise: one trial, one identity

    return check


def _integer(allowed: str, low: int, high: int) -> Callable[[str, Any], int]:
    def check(field: str, value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ConfigError(field, value, allowed)
        return value

    return check


def _choice(*allowed: str) -> Callable[[str, Any], str]:
    def check(field: str, value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise ConfigError(field, value, "one of " + ", ".join(allowed))
        return str(value)

    return check


def _name(check_name: Callable[[str], None]) -> Callable[[str, Any], str]:
    def check(field: str, value: Any) -> str:
        name = value if isinstance(value, str) else repr(value)
        check_name(name)
        return name

    return check


def _flag(field: str, value: Any) -> bool:
    if type(value) is not bool:
        raise ConfigError(field, value, "true or false")
    return value


def _gamma(field: str, value: Any) -> int | str:
    return value if value == "auto" else _integer("an integer from 0 to 1000000, or auto", 0, 10**6)(field, value)


_fraction = _number("a number from 0 to 1", lambda x: 0 <= x <= 1)
_below_one = _number("a number ≥ 0 and < 1", lambda x: 0 <= x < 1)

_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "dataset": _name(check_dataset_name),
    "model": _name(check_model_name),
    "width": _number("a number > 0 and ≤ 16", lambda x: 0 < x <= 16),
    "regularizer": _choice("none", *REGULARIZERS),
    "mode": _choice(*MODES),
    "lam": _number(f"a number from 0 to {MAX_LAM:g}", lambda x: 0 <= x <= MAX_LAM),
    "mu": _fraction,
    "gamma": _gamma,
    "gamma_threshold": _fraction,
    "seed": _integer("an integer from 0 to 2^63 - 1", 0, 2**63 - 1),
    "epochs": _integer("an integer from 1 to 1000000", 1, 10**6),
    "batch_size": _integer("an integer from 1 to 1000000", 1, 10**6),
    "lr": _number("a number > 0 and ≤ 1000", lambda x: 0 < x <= 1000),
    "momentum": _below_one,
    "lr_decay": _number("a number > 0 and ≤ 1", lambda x: 0 < x <= 1),
    "lr_decay_epochs": _integer("an integer from 1 to 1000000", 1, 10**6),
    "dropout": _below_one,
    "augment": _flag,
    "inputs": _choice(*INPUTS),
    "initialization": _choice(*INITIALIZATIONS),
    "precision": _choice(*PRECISIONS),
    "holdout": _number("a number ≥ 0 and ≤ 0.9", lambda x: 0 <= x <= 0.9),
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrialConfig:
    """One training run. Two equal configs are the same trial, with the same `trial_id`.

    Fields whose default is None get the paper's value for the data set and network; fields that the mode does not
    read become None (``gamma``, ``gamma_threshold``, ``mu``), so that they cannot tell equal trials apart.

    Attributes:
        dataset: ``digits``, ``cifar10``, ``cifar100``, ``svhn``, or ``NAME.npz`` of one's own (`gcsr.arrays`).
        model: ``alexnet``, ``vgg11``, ``vgg16``, ``vgg19``, ``mlpK``, or ``MODULE:FUNCTION``, which builds one's own
            (`gcsr.own_network`).
        width: multiplies the width of every hidden layer; 1 for one's own network.
        regularizer: ``l1``, ``l2``, or ``none`` (only with mode ``none``).
        mode: ``none``, ``baseline``, ``ours`` (eq. 11), ``ours_orig`` (eq. 8).
        lam: λ. For mode ``none`` it only sets what π is measured with.
        mu: μ of ``ours_orig`` (default 0.6).
        gamma: γ of ``ours``: epochs before λ applies (default 5), or ``"auto"``.
        gamma_threshold: mean π that ``gamma: auto`` waits for (default 0.6).
        seed: of initialization, order, augmentation and dropout.
        epochs: 60 on digits, 300 otherwise by default (the paper does not say).
        batch_size, lr, momentum: of SGD. lr is multiplied by ``lr_decay`` every ``lr_decay_epochs`` epochs.
        dropout: drop probability; 0.5, and 0 for the plain networks and one's own, which may have dropout of its own.
        augment: flip and crop; on for CIFAR only.
        inputs: ``standardized``: each channel with mean 0 and deviation 1 over the training images; ``unit``: 0 to 1.
        initialization: ``torch``: each layer's default; ``vgg``: torchvision's for VGG. VGG's default is the latter.
        precision: ``fp32``; ``tf32``: NVIDIA GPUs round the factors of products; ``bf16``: autocast.
        holdout: share of the training images kept aside to choose λ on; 0 chooses on the test images.

    Raises:
        ConfigError: a value is not allowed.
    """

    dataset: str = "digits"
    model: str = "mlp6"
    width: float = 1.0
    regularizer: str = "l2"
    mode: Mode = "baseline"
    lam: float = 0.0
    mu: float | None = None
    gamma: int | Literal["auto"] | None = None
    gamma_threshold: float | None = None
    seed: int = 0
    epochs: int | None = None
    batch_size: int = 128
    lr: float = 0.05
    momentum: float = 0.9
    lr_decay: float = 0.5
    lr_decay_epochs: int = 30
    dropout: float | None = None
    augment: bool | None = None
    inputs: str = "standardized"
    initialization: str | None = None
    precision: str = "fp32"
    holdout: float = 0.0

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                object.__setattr__(self, name, check(name, value))
        convolutional, own = is_convolutional(self.model), is_own_network(self.model)
        if self.dataset == "digits" and convolutional:
            raise ConfigError("model", self.model, "an mlpK for the 8×8 images of digits")
        if own and self.width != 1:
            raise ConfigError("width", self.width, f"1 for {self.model}, which knows its own")
        if self.regularizer == "none" and self.mode != "none":
            raise ConfigError("regularizer", "none", f"l1 or l2 for mode {self.mode}")
        if self.dropout and not convolutional:
            why = ", which has its own dropout layers if any" if own else ": it has no dropout layer"
            raise ConfigError("dropout", self.dropout, f"0 for {self.model}{why}")
        if self.initialization == "vgg" and not convolutional:
            raise ConfigError("initialization", "vgg", f"torch for {self.model}")
        if self.augment and self.dataset == "digits":
            raise ConfigError("augment", True, "false for digits: a flipped digit is another digit")
        resolved: dict[str, Any] = {
            "epochs": self.epochs or (60 if self.dataset == "digits" else 300),
            "dropout": self.dropout if self.dropout is not None else (0.5 if convolutional else 0.0),
            "augment": self.augment if self.augment is not None else self.dataset in ("cifar10", "cifar100"),
            "initialization": self.initialization or default_initialization(self.model),
            "lam": 0.0 if self.regularizer == "none" else self.lam,
            "mu": _or(self.mu, MU) if self.mode == "ours_orig" else None,
            "gamma": _or(self.gamma, GAMMA) if self.mode == "ours" else None,
        }
        threshold = self.mode == "ours" and self.gamma == "auto"
        resolved["gamma_threshold"] = _or(self.gamma_threshold, GAMMA_THRESHOLD) if threshold else None
        for name, value in resolved.items():
            object.__setattr__(self, name, value)

    @property
    def trial_id(self) -> str:
        """16 hexadecimal digits: a hash of every field, the same in every process and on every machine."""
        fields = self.to_dict()
        for name, before in self.before_there_was(self.model).items():  # stores of that time keep their trials
            if fields[name] == before:
                del fields[name]
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def penalty(self) -> Regularizer:
        """The Ω that π is measured with: L2's where there is no regularizer, as any would do for λ = 0."""
        return "l1" if self.regularizer == "l1" else "l2"

    def gate(self) -> Gate:
        """When λ applies, as training begins."""
        return Gate(
            mode=self.mode,
            gamma=None if self.gamma == "auto" else _or(self.gamma, GAMMA),
            gamma_threshold=_or(self.gamma_threshold, GAMMA_THRESHOLD),
            mu=_or(self.mu, MU),
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields, in order, as plain values."""
        return {name: getattr(self, name) for name in self.field_names()}

    @staticmethod
    def before_there_was(model: str) -> dict[str, Any]:
        """Fields that configs did not always have, and what every trial of ``model`` did before."""
        return {"inputs": "standardized", "initialization": default_initialization(model)}

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """The names of all fields, in order."""
        return tuple(field.name for field in dataclasses.fields(cls))

    @classmethod
    def check_field(cls, name: str, value: Any) -> None:
        """Raise `ConfigError` unless ``value`` alone could stand in field ``name``."""
        if name not in _CHECKS:
            raise ConfigError(name, value, "one of the fields " + ", ".join(_CHECKS))
        if value is not None or name not in _OPTIONAL:
            _CHECKS[name](name, value)


def cohort_key(config: TrialConfig) -> tuple[object, ...]:
    """What trials must have in common to be trained together by `gcsr.cohort.train_cohort`."""
    return tuple(getattr(config, name) for name in COHORT_FIELDS)


_OPTIONAL = {f.name for f in dataclasses.fields(TrialConfig) if f.default is None}


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
