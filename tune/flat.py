"""What a summary says as flat records: those of the JSON report, and the rows of the CSV."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from tune.found import train_command
from tune.schema import FAMILY_FIELDS
from tune.summary import Compared, Compression, Found, Row, Setting, Sparsest, Tolerance

__all__ = [
    "flat_comparison",
    "flat_compression",
    "flat_found",
    "flat_setting",
    "flat_tolerance",
    "setting_columns",
]

_LAM = {name: name for name in ("lam", "tuned")}
_METHOD = {name: name for name in ("lam", "mu", "gamma", "gamma_threshold", "tuned")}
_NESTED = ("recipe", "tuned", "sought")  # of which the last holds means that have a name of their own
_ACCURACY = {"n": "n", "accuracy": "accuracy_mean", "ci95": "accuracy_ci95"}
_SPARSITY = {"sparsity": "sparsity_mean", "accuracy": "accuracy_mean"}


def flat_setting(setting: Setting) -> Row:
    """A setting, with the fields of its recipe and those that a search chose."""
    return _flat(setting)


def setting_columns() -> list[str]:
    """The names in the record of a setting, where there is none that has them."""
    own = (field.name for field in fields(Setting) if field.name not in _NESTED)
    return list(dict.fromkeys((*own, *FAMILY_FIELDS)))


def flat_tolerance(level: Tolerance) -> Row:
    """A tolerance level, with the fields of its recipe."""
    return _flat(level)


def flat_comparison(compared: Compared) -> Row:
    """A comparison: ``baseline_…`` and ``ours_…`` are of the two settings."""
    return _flat(
        compared,
        baseline=_named("baseline", compared.baseline, _LAM | _ACCURACY),
        ours=_named("ours", compared.ours, _METHOD | _ACCURACY),
    )


def flat_compression(found: Compression) -> Row:
    """Compression: ``baseline_…``, ``ours_…``, ``near_…`` and ``plain_…`` are of the settings."""
    return _flat(
        found,
        baseline=_named("baseline", found.baseline, _LAM | _SPARSITY),
        ours=_sparsest("ours", found.ours, "compression"),
        near=_sparsest("near", found.near, "near_compression"),
        plain=_sparsest("plain", found.plain, "plain_compression"),
    )


def flat_found(found: Found) -> Row:
    """What a line of a search found: each setting of ``ranking`` and the ``refit`` with its ``command``."""
    return _flat(
        found,
        ranking={"ranking": [_ranked(setting) for setting in found.ranking]},
        refit={"refit": None if found.refit is None else _ranked(found.refit)},
    )


def _ranked(setting: Setting) -> Row:
    names = (*_METHOD, "n", "accuracy_mean", "accuracy_ci95", "val_accuracy_mean", "val_accuracy_ci95", "sparsity_mean")
    named = {name: getattr(setting, name) for name in (*names, "seeds", "trial_ids", "suggestion")}
    return named | {"command": train_command(setting)}


def _sparsest(prefix: str, found: Sparsest | None, compression: str) -> Row:
    setting = None if found is None else found.setting
    named = _named(prefix, setting, {"mode": "mode"} | _METHOD | _SPARSITY)
    return named | {compression: None if found is None else found.compression}


def _named(prefix: str, setting: Setting | None, names: Mapping[str, str]) -> Row:
    """Some attributes of a setting, by their name in the record; every one None if there is no setting."""
    return {f"{prefix}_{name}": None if setting is None else getattr(setting, own) for name, own in names.items()}


def _flat(finding: Setting | Tolerance | Compared | Compression | Found, **nested: Row) -> Row:
    """The finding's fields in their order, ``nested`` in place of those that are no plain values; its recipe last."""
    record: dict[str, Any] = {}
    for field in fields(finding):
        record |= nested.get(field.name, {field.name: getattr(finding, field.name)})
    recipe, tuned, _ = (record.pop(name, {}) for name in _NESTED)
    beside = recipe | tuned
    return record | {name: value for name, value in beside.items() if name not in record}
