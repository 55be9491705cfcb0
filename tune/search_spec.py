"""The part of a spec that says what a search varies, and what it maximizes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gcsr import ConfigError, TrialConfig

__all__ = [
    "FLOATS",
    "INTEGERS",
    "OBJECTIVES",
    "PRUNERS",
    "SAMPLERS",
    "Objective",
    "Pruner",
    "Range",
    "Sampler",
    "SearchSpec",
    "objective_means",
]

Sampler = Literal["tpe", "gp", "cmaes", "random", "qmc"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
Pruner = Literal["median", "wilcoxon"]
PRUNERS: tuple[Pruner, ...] = get_args(Pruner)
Objective = Literal["val_accuracy", "test_accuracy", "sparsity"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)

INTEGERS = ("gamma", "epochs", "batch_size", "lr_decay_epochs")
FLOATS = ("lam", "mu", "gamma_threshold", "width", "lr", "momentum", "lr_decay", "dropout")


class Range(BaseModel):
    """From where to where a field is searched, both ends included."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    low: float
    high: float
    log: bool = False


class SearchSpec(BaseModel):
    """The part ``search`` of a spec.

    Attributes:
        space: field → its range. Fields that are not named: λ between the least and the largest of the grid, on a log
            scale; μ and γ where the mode reads them and the grid does not fix them.
        sampler: of Optuna.
        objectives: one, or two for a Pareto front; all are maximized.
        sampler_seed: of the sampler.
        pruner: of Optuna; with one, the seeds of a setting run one after the other, and a setting that loses against
            earlier ones gets no more seeds. None runs every seed, as comparisons of significance need. Not with two
            objectives.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    space: dict[str, Range] = Field(default_factory=dict)
    sampler: Sampler = "tpe"
    objectives: tuple[Objective, ...] = ("val_accuracy",)
    sampler_seed: int = Field(default=0, ge=0, le=2**31 - 1)
    pruner: Pruner | None = None

    @field_validator("objectives", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("space")
    @classmethod
    def _check_space(cls, space: dict[str, Range]) -> dict[str, Range]:
        for name, given in space.items():
            if name not in (*FLOATS, *INTEGERS):
                raise ConfigError("search.space", name, "one of " + ", ".join((*FLOATS, *INTEGERS)))
            if not (math.isfinite(given.low) and math.isfinite(given.high) and given.low <= given.high):
                raise ConfigError(f"search.space.{name}", [given.low, given.high], "finite numbers low ≤ high")
            if given.log and given.low <= 0:
                raise ConfigError(f"search.space.{name}", given.low, "low > 0 where log is true")
            for end in (given.low, given.high):
                whole = name in INTEGERS and float(end).is_integer()
                TrialConfig.check_field(name, int(end) if whole else end)
        return space

    @model_validator(mode="after")
    def _check(self) -> "SearchSpec":
        _check_objectives(self.objectives, self.sampler, self.pruner)
        return self

    def replace(self, **fields: Any) -> "SearchSpec":
        """The spec with some fields, each valid alone, replaced.

        Raises:
            ConfigError: they do not go together.
        """
        replaced = self.model_copy(update=fields)
        _check_objectives(replaced.objectives, replaced.sampler, replaced.pruner)
        return replaced


def _check_objectives(objectives: tuple[Objective, ...], sampler: Sampler, pruner: Pruner | None) -> None:
    if not 1 <= len(objectives) <= 2 or len(set(objectives)) < len(objectives):
        raise ConfigError("search.objectives", list(objectives), "one, or two different ones")
    if sampler == "cmaes" and len(objectives) > 1:
        others = ", ".join(name for name in SAMPLERS if name != sampler)
        raise ConfigError("search.sampler", sampler, f"one of {others} for two objectives")
    if pruner is not None and len(objectives) > 1:  # it judges by one, and would lose points of the Pareto front
        raise ConfigError("search.pruner", pruner, "none for two objectives")


def objective_means(trials: Sequence[Mapping[str, Any]], objectives: Sequence[str]) -> tuple[float, ...] | None:
    """What a search takes a setting for: each objective's mean over its trials.

    Args:
        trials: their rows. Failed ones are left out; one that diverged in its first epoch has no metrics, and scores 0.
        objectives: columns.

    Returns:
        The means; None if every trial failed.
    """
    rows = [row for row in trials if row["status"] != "failed"]
    if not rows:
        return None
    return tuple(math.fsum(row[name] or 0.0 for row in rows) / len(rows) for name in objectives)
