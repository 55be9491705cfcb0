"""The columns of the Parquet store, once. Every other module takes names and types from here."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

import gcsr
from gcsr import TrialConfig
from gcsr.names import MODES, REGULARIZERS
from tune.provenance import package_version

if TYPE_CHECKING:
    from gcsr import TrialResult

__all__ = [
    "CONFIG_FIELDS",
    "EPOCHS",
    "FAMILY_FIELDS",
    "LATER_FIELDS",
    "METHOD_FIELDS",
    "TRIALS",
    "check_rows",
    "epoch_rows",
    "failed_row",
    "trial_row",
]

_CONFIG_TYPES: dict[str, pa.DataType] = {
    "dataset": pa.string(),
    "model": pa.string(),
    "width": pa.float64(),
    "regularizer": pa.string(),
    "mode": pa.string(),
    "lam": pa.float64(),
    "mu": pa.float64(),
    "gamma": pa.string(),  # an integer or "auto"
    "gamma_threshold": pa.float64(),
    "seed": pa.int64(),
    "epochs": pa.int64(),
    "batch_size": pa.int64(),
    "lr": pa.float64(),
    "momentum": pa.float64(),
    "lr_decay": pa.float64(),
    "lr_decay_epochs": pa.int64(),
    "dropout": pa.float64(),
    "augment": pa.bool_(),
    "inputs": pa.string(),
    "initialization": pa.string(),
    "precision": pa.string(),
    "holdout": pa.float64(),
}
CONFIG_FIELDS = tuple(_CONFIG_TYPES)
assert TrialConfig.field_names() == CONFIG_FIELDS, "every config field is a column"
LATER_FIELDS = frozenset(TrialConfig.before_there_was(""))
"""Columns of the configuration that older stores do not have."""
METHOD_FIELDS = ("regularizer", "mode", "lam", "mu", "gamma", "gamma_threshold")
"""Trials that differ in these only, and in the seed, are of one family: in it, modes and λ compete."""
FAMILY_FIELDS = tuple(name for name in CONFIG_FIELDS if name != "seed" and name not in METHOD_FIELDS)

_KNOWN: dict[str, tuple[str, ...]] = {
    "mode": MODES,
    "regularizer": ("none", *REGULARIZERS),
    "status": ("finished", "collapsed", "diverged", "failed"),
}

TRIALS = pa.schema(
    [
        pa.field("trial_id", pa.string(), nullable=False),
        pa.field("experiment", pa.string(), nullable=False),
        *(pa.field(name, kind) for name, kind in _CONFIG_TYPES.items()),
        pa.field("status", pa.string(), nullable=False),  # finished, collapsed, diverged, failed
        ("error", pa.string()),
        ("test_accuracy", pa.float64()),
        ("val_accuracy", pa.float64()),
        ("sparsity", pa.float64()),
        ("pi", pa.float64()),
        ("imposed_fraction", pa.float64()),
        ("train_loss", pa.float64()),
        ("grad_abs_mean", pa.float64()),
        ("weight_abs_mean", pa.float64()),
        ("gamma_used", pa.int64()),
        ("epochs_run", pa.int64()),  # fewer than ``epochs`` where the trial ended early
        ("parameters", pa.int64()),
        ("seconds", pa.float64()),
        ("device", pa.string()),
        ("world_size", pa.int64()),
        ("gcsr_version", pa.string()),
        ("torch_version", pa.string()),
        ("finished_at", pa.timestamp("us", tz="UTC")),
    ]
)

EPOCHS = pa.schema(
    [
        pa.field("trial_id", pa.string(), nullable=False),
        pa.field("epoch", pa.int64(), nullable=False),
        ("train_loss", pa.float64()),
        ("test_accuracy", pa.float64()),
        ("val_accuracy", pa.float64()),
        ("pi", pa.float64()),
        ("imposed_fraction", pa.float64()),
        ("grad_abs_mean", pa.float64()),
        ("weight_abs_mean", pa.float64()),
        ("sparsity", pa.float64()),
        ("lr", pa.float64()),
        ("lam_effective", pa.float64()),
        ("seconds", pa.float64()),
    ]
)


def check_rows(trials: pa.Table) -> None:
    """Raise ValueError if rows of the table ``trials`` say what no trial can."""
    import pyarrow.compute as pc  # only here: no command waits for it that reads no trials

    for name in ("lam", "seed", *(name for name in FAMILY_FIELDS if name != "augment")):
        if trials[name].null_count:
            raise ValueError(f"{name} is missing")
    for name, known in _KNOWN.items():
        unknown = [value for value in trials[name].unique().to_pylist() if value not in known]
        if unknown:
            raise ValueError(f"{name} is {unknown[0]!r:.60}")
    for name in ("lam", "test_accuracy", "val_accuracy", "sparsity", "pi", "imposed_fraction", "seconds"):
        if pc.all(pc.is_finite(trials[name])).as_py() is False:  # nulls are passed over
            raise ValueError(f"{name} is not finite")


def trial_row(config: TrialConfig, experiment: str, result: "TrialResult") -> dict[str, Any]:
    """The row of a trial that ran to an end of any kind."""
    metrics = {name: getattr(result, name) for name in TRIALS.names if hasattr(result, name)}
    return (
        _identity(config, experiment)
        | metrics
        | {"epochs": config.epochs, "epochs_run": len(result.epochs), "error": None}
    )


def failed_row(config: TrialConfig, experiment: str, error: str) -> dict[str, Any]:
    """The row of a trial that raised; it has no metrics."""
    return _identity(config, experiment) | {"status": "failed", "error": error}


def epoch_rows(config: TrialConfig, result: "TrialResult") -> list[dict[str, Any]]:
    """One row an epoch of a trial."""
    trial_id = config.trial_id
    return [
        {"trial_id": trial_id} | {name: getattr(record, name) for name in EPOCHS.names[1:]} for record in result.epochs
    ]


def _identity(config: TrialConfig, experiment: str) -> dict[str, Any]:
    fields = config.to_dict()
    fields["gamma"] = None if config.gamma is None else str(config.gamma)
    return (
        dict.fromkeys(TRIALS.names)
        | fields
        | {
            "trial_id": config.trial_id,
            "experiment": experiment,
            "gcsr_version": gcsr.__version__,
            "torch_version": package_version("torch"),
            "finished_at": datetime.now(UTC),
        }
    )
