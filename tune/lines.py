"""The lines of a search: one Optuna study of λ (μ, γ, …) for each thing that is compared."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import FloatDistribution, IntDistribution

from gcsr import ConfigError, InvalidInputError, TrialConfig
from tune.search_spec import FLOATS, INTEGERS, SearchSpec
from tune.words import told_apart

__all__ = ["Line", "labels", "lines_of"]

_MU, _GAMMA = (0.4, 0.9), (0, 20)  # around the paper's 0.6 and 5, where the spec does not say
_HOLDOUT = 0.1  # of the training images, where the spec does not say: λ is not to be chosen on the test images
_DIGITS = 4  # significant ones of a suggested number: more than λ deserves, and readable

Distribution = FloatDistribution | IntDistribution


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """Settings that differ only in what is searched: one Optuna study.

    Attributes:
        fixed: the fields that all of them share.
        seeds: each setting is trained once for each.
        space: Optuna's distributions, by field.
    """

    fixed: dict[str, Any]
    seeds: tuple[int, ...]
    space: dict[str, Distribution]

    @property
    def label(self) -> str:
        """A short name, as ``digits/mlp6/l2/ours``, and γ if it is fixed. For more see `labels`."""
        parts = [str(self.fixed[name]) for name in ("dataset", "model", "regularizer", "mode")]
        return "/".join(parts) + (f"/gamma={self.fixed['gamma']}" if "gamma" in self.fixed else "")

    @property
    def is_finite(self) -> bool:
        """Whether there are only so many settings, so that a search may suggest one twice."""
        return all(isinstance(each, IntDistribution) or each.single() for each in self.space.values())

    def configs(self, params: dict[str, Any]) -> list[TrialConfig]:
        """The setting's trials, one a seed."""
        return [TrialConfig(**self.fixed, **params, seed=seed) for seed in self.seeds]

    def lowest(self) -> dict[str, Any]:
        """The lower end of every range."""
        return {name: distribution.low for name, distribution in self.space.items()}

    def highest(self) -> dict[str, Any]:
        """The upper end of every range."""
        return {name: distribution.high for name, distribution in self.space.items()}

    def contains(self, params: dict[str, Any]) -> bool:
        """Whether a search of the line could suggest them."""
        return params.keys() == self.space.keys() and all(
            distribution.low <= params[name] <= distribution.high
            and (isinstance(distribution, FloatDistribution) or float(params[name]).is_integer())
            for name, distribution in self.space.items()
        )

    def rounded(self, params: dict[str, Any]) -> dict[str, Any]:
        """Suggested numbers with as many digits as anybody reads, still inside their ranges."""
        found = {}
        for name, value in params.items():
            distribution = self.space[name]
            if isinstance(distribution, FloatDistribution):
                value = min(max(float(f"{value:.{_DIGITS}g}"), distribution.low), distribution.high)
            found[name] = value
        return found


def labels(lines: Sequence[Line]) -> list[str]:
    """A name for each line that no other of them has."""
    told = told_apart([line.fixed for line in lines])
    return [
        "/".join([line.label, *(f"{name}={value}" for name, value in others.items())])
        for line, others in zip(lines, told, strict=True)
    ]


def lines_of(grids: list[dict[str, list[Any]]], search: SearchSpec) -> list[Line]:
    """One line for each combination of what the grids list and the search does not vary.

    Args:
        grids: plain products, field → values, as `SweepSpec.spaces` gives them.
        search: what to vary.

    Raises:
        InvalidInputError: nothing is left to search, or a combination is not allowed.
    """
    lines: dict[str, Line] = {}
    for grid in (part for whole in grids for part in _by_gamma(whole, search)):
        seeds = tuple(grid.get("seed", [TrialConfig.__dataclass_fields__["seed"].default]))
        varied = {"seed", "lam", "mu", "gamma", "gamma_threshold", *search.space}
        shared = {name: values for name, values in grid.items() if name not in varied}
        for values in itertools.product(*shared.values()):
            fixed = dict(zip(shared, values, strict=True))
            if fixed.get("mode", "baseline") == "none" or fixed.get("regularizer") == "none":
                continue  # nothing of the method to search
            line = _line(fixed, seeds, grid, search)
            lines.setdefault(repr((sorted(line.fixed.items()), line.space)), line)
    if not lines:
        raise InvalidInputError("mode: none leaves nothing to search; expected baseline, ours or ours_orig")
    return list(lines.values())


def _line(fixed: dict[str, Any], seeds: tuple[int, ...], grid: dict[str, list[Any]], search: SearchSpec) -> Line:
    defaults = TrialConfig.__dataclass_fields__
    mode = fixed.setdefault("mode", defaults["mode"].default)
    for name in ("dataset", "model", "regularizer"):
        fixed.setdefault(name, defaults[name].default)
    if "val_accuracy" in search.objectives:
        if fixed.get("holdout") is None:
            fixed["holdout"] = _HOLDOUT
        if fixed["holdout"] == 0:
            raise ConfigError("holdout", 0, "a share of the images, as the objective is val_accuracy")
    space: dict[str, Distribution] = {}
    for name in (*FLOATS, *INTEGERS):
        if not _reads(mode, name, grid):
            continue
        given = search.space.get(name)
        if given is not None:
            space[name] = _distribution(name, given.low, given.high, given.log)
        elif name == "lam":
            positive = [lam for lam in grid.get("lam", []) if lam > 0]
            if len(set(positive)) < 2:
                raise ConfigError("lam", grid.get("lam"), "search.space.lam, or two values > 0 to search between")
            space[name] = FloatDistribution(min(positive), max(positive), log=True)
        elif name in ("mu", "gamma", "gamma_threshold"):
            values = [value for value in grid.get(name, []) if value is not None]
            if len(values) > 1:
                space[name] = _distribution(name, min(values), max(values), False)
            elif values:
                fixed[name] = values[0]
            elif name != "gamma_threshold":
                low, high = _MU if name == "mu" else _GAMMA
                space[name] = _distribution(name, low, high, False)
    line = Line(fixed=fixed, seeds=seeds, space=space)
    for end in (line.lowest(), line.highest()):
        line.configs(end)  # refuses what can never be: every field's allowed values are an interval
    return line


def _by_gamma(grid: dict[str, list[Any]], search: SearchSpec) -> list[dict[str, list[Any]]]:
    """The grid, in two where it lists γ as numbers and as ``auto``: only numbers lie in a range."""
    gammas = grid.get("gamma", [])
    numbers = [gamma for gamma in gammas if gamma != "auto"]
    if "gamma" in search.space or len(numbers) in (0, len(gammas)):
        return [grid]
    return [{**grid, "gamma": numbers}, {**grid, "gamma": ["auto"]}]


def _reads(mode: str, name: str, grid: dict[str, list[Any]]) -> bool:
    """Whether the mode reads the field, so that searching it makes sense."""
    if name == "mu":
        return mode == "ours_orig"
    if name == "gamma":
        return mode == "ours"
    if name == "gamma_threshold":
        return mode == "ours" and grid.get("gamma") == ["auto"]
    return True


def _distribution(name: str, low: float, high: float, log: bool) -> Distribution:
    if name in INTEGERS:
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)
