"""What a search is and stays, and what it suggested so far: kept beside its store, so that it goes on as the same."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optuna.distributions import distribution_to_json

from gcsr import InvalidInputError
from tune.folder import DamagedStoreError, StoreError
from tune.lines import Line
from tune.run_options import RunOptions
from tune.spec import SweepSpec
from tune.store import SEARCH, SUGGESTIONS, Store

__all__ = [
    "SearchIdentity",
    "asked_definition",
    "known_identity",
    "known_suggestions",
    "write_identity",
    "write_suggestions",
]

_ANEW = "; delete it, and the search makes its suggestions anew, with the trials that are there in mind"


@dataclass(frozen=True, slots=True)
class SearchIdentity:
    """What a search is and stays: kept beside its store, so that it goes on as the same search.

    Attributes:
        driver: distinguishes it from others that share an Optuna storage.
        definition: what suggestions depend on, beside ``window`` and ``known``.
        window: at most so many settings are under way at once.
        known: ids of the trials that were in the store before it; suggestions are made with them in mind.
    """

    driver: str
    definition: dict[str, Any]
    window: int
    known: frozenset[str]


def asked_definition(lines: Sequence[Line], spec: SweepSpec, options: RunOptions) -> dict[str, Any]:
    """Everything that suggestions depend on, as JSON has it."""
    search = spec.search
    return {
        "stop_collapsed": options.stop_collapsed,
        "sampler": search.sampler,
        "sampler_seed": search.sampler_seed,
        "pruner": search.pruner,
        "objectives": list(search.objectives),
        "lines": [
            {"fixed": line.fixed, "seed": list(line.seeds)}
            | {name: json.loads(distribution_to_json(each)) for name, each in line.space.items()}
            for line in lines
        ],
    }


def known_identity(store: Store, window: int | None, definition: dict[str, Any]) -> SearchIdentity | None:
    """The search that the store holds; None if it holds none.

    Args:
        store: of the search.
        window: as asked for; None for whatever it is.
        definition: of the search as it is asked for now.

    Raises:
        DamagedStoreError: it cannot be read.
        StoreError, InvalidInputError: it is another search.
    """
    found = _read(store, SEARCH)
    if found is None:
        return None
    try:
        known = frozenset(str(trial_id) for trial_id in found["known"])
        identity = SearchIdentity(str(found["driver"]), dict(found["definition"]), int(found["window"]), known)
        if identity.window < 1:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise DamagedStoreError(
            f"{store.path(SEARCH)} is damaged: expected driver, definition, window ≥ 1, known{_ANEW}"
        ) from None
    for name, value in definition.items():
        if identity.definition.get(name) != value:
            raise StoreError(
                f"out: {store.location!r} holds a search with other {name}; expected the same spec and options, or "
                "another DIR"
            )
    if window not in (None, identity.window):
        raise InvalidInputError(
            f"window: {window} is not allowed; expected {identity.window}, with which the search began"
        )
    return identity


def _read(store: Store, name: str) -> dict[str, Any] | None:
    try:
        return store.read_json(name)
    except DamagedStoreError as error:
        raise DamagedStoreError(f"{error}{_ANEW}") from None


def write_identity(store: Store, identity: SearchIdentity) -> None:
    """Keep it, for `known_identity`."""
    store.write_json(SEARCH, asdict(identity) | {"known": sorted(identity.known)})


def known_suggestions(store: Store, identity: SearchIdentity, lines: Sequence[Line]) -> list[list[dict[str, Any]]]:
    """What was suggested so far: the searched fields of the settings of each line.

    Raises:
        DamagedStoreError: it cannot be read.
    """
    found = _read(store, SUGGESTIONS)
    if found is None or found.get("driver") != identity.driver:
        return [[] for _ in lines]
    try:
        suggested = [[dict(params) for params in of_line] for of_line in found["lines"]]
        possible = all(
            line.contains(params) for line, of_line in zip(lines, suggested, strict=True) for params in of_line
        )
    except (KeyError, TypeError, ValueError):
        possible = False
    if not possible:
        raise DamagedStoreError(f"{store.path(SUGGESTIONS)} is damaged: expected driver, lines{_ANEW}")
    return suggested


def write_suggestions(store: Store, identity: SearchIdentity, suggested: Sequence[Sequence[dict[str, Any]]]) -> None:
    """Keep them, for `known_suggestions`."""
    store.write_json(SUGGESTIONS, {"driver": identity.driver, "lines": suggested})
