"""A sweep's specification: YAML in, trial configs out."""

import difflib
import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from gcsr import ConfigError, InvalidInputError, TrialConfig
from tune.search_spec import OBJECTIVES, Range, SearchSpec

__all__ = ["MAX_TRIALS", "SweepSpec", "load_spec", "parse_assignment", "parse_yaml", "shipped_specs"]

MAX_TRIALS = 1_000_000
_MAX_BYTES = 1 << 20
_MAX_WORKERS = 1024
_EXPECTED = {
    "experiment": "a name of 1 to 80 letters, digits and . _ - that begins with a letter or digit",
    "description": "text",
    "grid": "a mapping from fields to values",
    "include": "a list of mappings from fields to values",
    "include.*": "a mapping from fields to values",
    "search": f"a mapping with some of the keys {', '.join(SearchSpec.model_fields)}",
    "search.objectives": f"a list of one or two of {', '.join(OBJECTIVES)}",
    "search.space": "a mapping from fields to their ranges",
    "search.space.*": "a mapping with low, high and, if wanted, log",
    "search.space.*.low": "a number",
    "search.space.*.high": "a number",
    "search.space.*.log": "true or false",
    "workers": f"an integer from 1 to {_MAX_WORKERS}",
}
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$"


class SweepSpec(BaseModel):
    """A grid over trial configs, validated and frozen.

    Attributes:
        experiment: name of the experiment; a column of the store.
        description: for people.
        grid: field of `TrialConfig` → one value, or a list of values; the sweep is their product. ``lam`` may
            also be a mapping from regularizer to its own values.
        include: further grids; each takes over the fields of ``grid`` that it does not name. If given, ``grid``
            alone is no part of the sweep.
        search: what ``gcsr search`` varies, and how.
        workers: processes that train one trial together; no part of a trial's identity, as it changes how an
            experiment is computed and not which one it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    experiment: str = Field(pattern=_NAME)
    description: str = ""
    grid: dict[str, Any] = Field(default_factory=dict)
    include: tuple[dict[str, Any], ...] = ()
    workers: int = Field(default=1, ge=1, le=_MAX_WORKERS)
    search: SearchSpec = SearchSpec()

    @field_validator("include", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("grid")
    @classmethod
    def _check_grid(cls, grid: dict[str, Any]) -> dict[str, Any]:
        for name, value in grid.items():
            _check_known(name, value, TrialConfig.field_names())
            _check_values(name, value)
        return grid

    @field_validator("include")
    @classmethod
    def _check_include(cls, include: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for grid in include:
            cls._check_grid(grid)
        return include

    def replace(self, fields: Mapping[str, Any]) -> "SweepSpec":
        """The spec with ``fields`` set everywhere, in place of what the grid and every included grid say.

        Raises:
            ConfigError: an unknown field, or a value that is not allowed.
        """
        own = {name: value for name, value in fields.items() if name == "workers"}
        if own and (type(own["workers"]) is not int or not 1 <= own["workers"] <= _MAX_WORKERS):
            raise ConfigError("workers", own["workers"], f"an integer from 1 to {_MAX_WORKERS}")
        fields = {name: value for name, value in fields.items() if name not in own}
        for name, value in fields.items():
            _check_known(name, value, (*TrialConfig.field_names(), "workers"))
            _check_values(name, value)
        include = tuple({k: v for k, v in grid.items() if k not in fields} for grid in self.include)
        return self.model_copy(update={"grid": {**self.grid, **fields}, "include": include, **own})

    def spaces(self) -> list[dict[str, list[Any]]]:
        """The grids as plain products, field → values; one a regularizer where λ differs between them.

        Raises:
            ConfigError: a regularizer of the grid has no values of λ.
        """
        grids = [{**self.grid, **grid} for grid in self.include] or [self.grid]
        return [space for grid in grids for space in _spaces(grid)]

    def trials(self) -> list[TrialConfig]:
        """The distinct trials, in an order that completes one seed of every setting before the next seed.

        Modes that do not depend on a value are not repeated for it: ``none`` runs once per seed whatever the grid
        of λ and regularizers, μ spans only ``ours_orig`` and γ only ``ours``.

        Raises:
            ConfigError: a combination is not allowed, or there are too many.
        """
        spaces = self.spaces()
        size = sum(math.prod(map(len, space.values())) for space in spaces)
        if size > MAX_TRIALS:
            raise ConfigError("grid", f"{size} combinations", f"at most {MAX_TRIALS}")
        distinct: dict[str, TrialConfig] = {}
        for space in spaces:
            for values in itertools.product(*space.values()):
                fields = dict(zip(space, values, strict=True))
                if fields.get("mode") == "none":
                    fields |= {"regularizer": "none", "lam": 0.0}
                config = TrialConfig(**fields)
                distinct.setdefault(config.trial_id, config)
        return sorted(distinct.values(), key=lambda config: config.seed)  # stable: the grid's order within a seed


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _check_known(name: str, value: Any, known: Collection[str]) -> None:
    if name not in known:
        meant = difflib.get_close_matches(name, known, n=1, cutoff=0.65)
        hint = f"; did you mean {meant[0]}?" if meant else ""
        raise ConfigError(name, value, f"one of the fields {', '.join(known)}{hint}")


def _check_values(name: str, value: Any) -> None:
    if name != "lam" or not isinstance(value, dict):
        _check_list(name, value)
        return
    for regularizer, values in value.items():
        TrialConfig.check_field("regularizer", regularizer)
        _check_list(name, values)
    if not value:
        raise ConfigError(name, value, "values for at least one regularizer")


def _check_list(name: str, value: Any) -> None:
    values = _values(value)
    if not values:
        raise ConfigError(name, value, "a value or a list of at least one")
    for each in values:
        TrialConfig.check_field(name, each)
    if any(values.index(each) != index for index, each in enumerate(values[:1000])):
        raise ConfigError(name, value, "a list without repetitions")


def _spaces(grid: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
    """The grid as plain products: one, or one a regularizer where λ differs between them."""
    space = {name: _values(value) for name, value in grid.items() if name != "lam"}
    lam = grid.get("lam", 0.0)
    if not isinstance(lam, dict):
        yield {**space, "lam": _values(lam)}
        return
    for regularizer in space.get("regularizer", ["l2"]):
        if regularizer == "none":
            yield {**space, "regularizer": [regularizer], "lam": [0.0]}
            continue
        if regularizer not in lam:
            raise ConfigError("lam", lam, f"values for every regularizer of the grid: {regularizer} has none")
        yield {**space, "regularizer": [regularizer], "lam": _values(lam[regularizer])}


# -- reading ----------------------------------------------------------------------------------------------------


_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: ``1e-3`` is a number and ``010`` ten, no key is repeated, and nothing can be expanded."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise InvalidInputError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for node_of_key, _ in node.value:
            if node_of_key.tag == _MERGE:
                raise InvalidInputError("merge keys (<<) are not allowed")
            key = self.construct_object(node_of_key, deep=True)
            if not isinstance(key, str):
                raise InvalidInputError(f"the key {key!r:.60} is not a name")
            if key in seen:
                raise InvalidInputError(f"the key {key!r:.60} is there twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


_INTEGER, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
# YAML 1.1 also counts to the base of 60 (1:30) and of 8 (010).
_Loader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0] not in (_INTEGER, _FLOAT)]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in (
    (_INTEGER, r"^[-+]?[0-9]+$"),
    (_FLOAT, r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
):
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list("-+0123456789."))
_Loader.add_constructor(_INTEGER, lambda loader, node: int(loader.construct_scalar(node)))  # type: ignore[arg-type]


# PyYAML lets out what its constructors meet where a tag does not fit its value, as in !!bool maybe.
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError, OverflowError, LookupError, AttributeError, TypeError)


def parse_yaml(text: str, origin: str) -> Any:
    """Plain values from YAML text.

    Raises:
        InvalidInputError: not YAML, or using what specs do not allow; the line begins with ``origin``.
    """
    if len(text) > _MAX_BYTES:
        raise InvalidInputError(f"{origin}: {len(text)} characters; expected at most {_MAX_BYTES}")
    try:
        return yaml.load(text, Loader=_Loader)
    except InvalidInputError as error:
        raise InvalidInputError(f"{origin}: {error}") from None
    except yaml.MarkedYAMLError as error:
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InvalidInputError(f"{origin}: not valid YAML{where}: {error.problem}") from None
    except _NOT_YAML as error:
        raise InvalidInputError(f"{origin}: not valid YAML: {' '.join(str(error).split())[:160]}") from None


def parse_assignment(text: str) -> tuple[str, Any]:
    """``FIELD=VALUE`` of the command line; VALUE is YAML.

    Raises:
        InvalidInputError: it is not of that form.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise InvalidInputError(f"set: {text!r} is not allowed; expected FIELD=VALUE, such as seed=[0,1]")
    return name.strip(), parse_yaml(value, f"set: {name.strip()}")


def shipped_specs() -> dict[str, str]:
    """Names of the specs that come with gcsr, and their text."""
    found = (item for item in (files("tune") / "specs").iterdir() if item.name.endswith(".yaml"))
    texts = {item.name.removesuffix(".yaml"): item.read_text(encoding="utf-8") for item in found}
    return dict(sorted(texts.items()))


def load_spec(name: str, assignments: Mapping[str, Any] | None = None) -> SweepSpec:
    """A shipped spec by name, or a YAML file by path.

    Args:
        name: ``digits``, or ``my/sweep.yaml``.
        assignments: fields to replace, as `SweepSpec.replace`.

    Raises:
        InvalidInputError: there is no such spec, or it is not valid; one line.
    """
    shipped = shipped_specs()
    text = shipped[name] if name in shipped else _read(name, shipped)
    raw = parse_yaml(text, f"spec: {name}")
    if not isinstance(raw, dict):
        raise InvalidInputError(f"spec: {name}: expected a mapping with experiment and grid")
    try:
        spec = SweepSpec.model_validate(raw)
        return spec.replace(assignments) if assignments else spec
    except ValidationError as error:
        raise InvalidInputError(f"spec: {name}: {_first_of(error)}") from None


def _read(name: str, shipped: Collection[str]) -> str:
    path = Path(name)
    try:
        if path.exists() and not path.is_file():
            raise InvalidInputError(f"spec: {name!r:.80} is not allowed; expected a YAML file")
        if path.stat().st_size > _MAX_BYTES:
            raise InvalidInputError(f"spec: {name} has {path.stat().st_size} bytes; expected at most {_MAX_BYTES}")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidInputError(f"spec: {name!r:.80} is not UTF-8; expected a YAML file in UTF-8") from None
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        reason = getattr(error, "strerror", None) or "no path"
        known = ", ".join(n for n in shipped if not n.startswith("paper-")) + ", paper-… (gcsr specs lists all)"
        raise InvalidInputError(
            f"spec: {name!r:.80} ({reason}) is not allowed; expected a YAML file, or {known}"
        ) from None


def _first_of(error: ValidationError) -> str:
    """The first of pydantic's complaints, as one of ours."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InvalidInputError):
        return str(cause)
    loc = first["loc"]
    field = ".".join(str(part) for part in loc)
    if first["type"] == "extra_forbidden":
        models: dict[int, type[BaseModel]] = {1: SweepSpec, 2: SearchSpec}
        allowed = ", ".join(models.get(len(loc), Range).model_fields)
        return f"{field}: {first['input']!r:.60} is not allowed; expected only the keys {allowed}"
    expected = _EXPECTED.get(_kind(loc), first["msg"].removeprefix("Input should be "))
    if first["type"] == "missing":
        return f"{field} is missing; expected {expected}"
    return f"{field}: {first['input']!r:.60} is not allowed; expected {expected}"


def _kind(loc: tuple[int | str, ...]) -> str:
    """Where in a spec something is, with * for whichever included grid or searched field."""
    parts = [str(part) for part in loc]
    named = 1 if parts[0] == "include" else 2 if parts[:2] == ["search", "space"] else len(parts)
    return ".".join("*" if n == named else part for n, part in enumerate(parts))
