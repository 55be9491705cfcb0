"""Gradient-coherent strong regularization: the method, useful alone in anybody's training loop."""

from importlib import import_module
from typing import TYPE_CHECKING

from gcsr.config import TrialConfig
from gcsr.errors import CheckpointError, ConfigError, DataError, InvalidInputError, NonFiniteGradientError

if TYPE_CHECKING:
    from gcsr.data import Dataset, load_dataset
    from gcsr.gate_metrics import GateMetrics
    from gcsr.optim import GatedOptimizer
    from gcsr.records import EpochRecord, TrialResult
    from gcsr.regularized import regularized_parameters
    from gcsr.trained_network import TrainedNetwork, load_network
    from gcsr.trainer import train

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Dataset",
    "EpochRecord",
    "GateMetrics",
    "GatedOptimizer",
    "InvalidInputError",
    "NonFiniteGradientError",
    "TrainedNetwork",
    "TrialConfig",
    "TrialResult",
    "load_dataset",
    "load_network",
    "regularized_parameters",
    "train",
]

__version__ = "0.1.0"

# Importing torch takes seconds: whoever only checks a config, reads a store or asks for help does not wait for it.
_NEEDS_TORCH = {
    "Dataset": "gcsr.data",
    "EpochRecord": "gcsr.records",
    "GateMetrics": "gcsr.gate_metrics",
    "GatedOptimizer": "gcsr.optim",
    "TrainedNetwork": "gcsr.trained_network",
    "TrialResult": "gcsr.records",
    "load_dataset": "gcsr.data",
    "load_network": "gcsr.trained_network",
    "regularized_parameters": "gcsr.regularized",
    "train": "gcsr.trainer",
}


def __getattr__(name: str) -> object:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_NEEDS_TORCH[name]), name)


def __dir__() -> list[str]:
    return sorted(globals() | _NEEDS_TORCH)
