"""Numbers and names as people read them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = [
    "NONE",
    "counted",
    "distinctions",
    "duration_text",
    "fields_text",
    "float_text",
    "method_text",
    "network_texts",
    "number",
    "percent",
    "probability",
    "short_digest",
    "signed_percent",
    "told_apart",
    "tuned_text",
    "value_text",
]

NONE = "–"
"""In place of a number that is not there."""


def counted(count: int, noun: str) -> str:
    """As ``1 trial`` and ``2 trials``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def float_text(value: float | None) -> str:
    """A number in the shortest form that reads back as the same number."""
    return NONE if value is None else f"{value:g}" if float(f"{value:g}") == value else repr(value)


def tuned_text(lam: float | None, tuned: Mapping[str, Any] | None) -> str:
    """λ, and what else a search chose."""
    return float_text(lam) + (f", {fields_text(tuned)}" if tuned else "")


def method_text(
    mode: str, *, mu: float | None = None, gamma: int | str | None = None, gamma_threshold: float | None = None
) -> str:
    """A mode with the μ or γ that it reads."""
    threshold = "" if gamma_threshold is None else f" (π > {gamma_threshold:g})"
    return mode + (f" γ={gamma}{threshold}" if gamma is not None else f" μ={mu:g}" if mu is not None else "")


def network_texts(configs: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> list[str]:
    """What each config's network is called, as ``mlp6 on digits`` or ``mlp6 on digits (width 2, lr 0.01)``.

    Configs that differ in one of the ``fields`` have different names.
    """
    named = ("dataset", "model")
    told = distinctions(configs, named, (name for name in fields if name not in named))
    texts = []
    for config, others in zip(configs, told, strict=True):
        if config["width"] != 1 and "width" in fields:  # the paper's networks have 1
            others = {"width": config["width"]} | others
        texts.append(f"{config['model']} on {config['dataset']}" + (f" ({fields_text(others)})" if others else ""))
    return texts


def fields_text(fields: Mapping[str, Any]) -> str:
    """Fields of a config, as ``lr 0.01, augment false``."""
    return ", ".join(f"{name} {value_text(value)}" for name, value in fields.items())


def value_text(value: Any) -> str:
    """A field's value: a number in its shortest form, true or false; a dash for None."""
    if value is None:
        return NONE
    return (
        str(value).lower() if isinstance(value, bool) else float_text(value) if isinstance(value, float) else str(value)
    )


def told_apart(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`distinctions` of the fixed fields of a search's lines, beside those that name a line anyway."""
    named = ("dataset", "model", "regularizer", "mode", "gamma")
    others = dict.fromkeys(name for line in lines for name in line if name not in named)
    return distinctions(lines, named, others)


def distinctions(
    records: Sequence[Mapping[str, Any]], within: Sequence[str], fields: Iterable[str]
) -> list[dict[str, Any]]:
    """What tells each record from others that agree in the fields ``within``: those of the ``fields`` that differ."""
    seen: dict[tuple[Any, ...], dict[str, set[Any]]] = {}
    fields = tuple(fields)
    keys = [tuple(record.get(name) for name in within) for record in records]
    for key, record in zip(keys, records, strict=True):
        of_key = seen.setdefault(key, {name: set() for name in fields})
        for name in fields:
            of_key[name].add(record.get(name))
    return [
        {name: record.get(name) for name in fields if len(seen[key][name]) > 1}
        for key, record in zip(keys, records, strict=True)
    ]


def number(value: float | None, digits: int = 3) -> str:
    """With so many digits after the point."""
    return NONE if value is None else f"{value:.{digits}f}"


def percent(value: float | None, half_width: float | None = None) -> str:
    """A fraction in percent, with its half interval if there is one."""
    if value is None:
        return NONE
    return f"{100 * value:.2f}" + (f" ± {100 * half_width:.2f}" if half_width is not None else "") + " %"


def signed_percent(value: float | None) -> str:
    """A fraction in percent, with its sign."""
    return NONE if value is None else f"{100 * value:+z.2f} %"


def short_digest(sha256: str) -> str:
    """As much of a checksum as tells it from another."""
    return f"{sha256[:12]}…"


def duration_text(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def probability(p: float | None) -> str:
    """A p-value."""
    return NONE if p is None else "< 0.0001" if p < 1e-4 else f"{p:.4f}"
