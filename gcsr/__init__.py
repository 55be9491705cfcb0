"""Gradient-coherent strong regularization: the method, useful alone in anybody's training loop."""

from gcsr.config import TrialConfig
from gcsr.data import Dataset, load_dataset
from gcsr.errors import CheckpointError, ConfigError, DataError, InvalidInputError, NonFiniteGradientError
from gcsr.optim import GatedOptimizer, GateMetrics, regularized_parameters
from gcsr.records import EpochRecord, TrialResult
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
    "TrialConfig",
    "TrialResult",
    "load_dataset",
    "regularized_parameters",
    "train",
]

__version__ = "0.1.0"
