"""What a report says of a search: how the best found grew, and which parameter mattered."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gcsr import InvalidInputError, TrialConfig
from tune.figures import Figure, Series
from tune.filesystem import one_line
from tune.folder import DamagedStoreError
from tune.schema import METHOD_FIELDS, TRIALS
from tune.stats import mean
from tune.store import SEARCH, SUGGESTIONS, Store
from tune.summary import DIGITS, Asked, Searched
from tune.tables import TextTable, objective_text
from tune.words import fields_text, method_text, told_apart

__all__ = ["history_figures", "importance_table", "stored_definition", "stored_search", "tuned_fields"]

_NAMING = ("dataset", "model", "regularizer", "mode")
_LEAST = 8  # settings of a line before the importance of its parameters says anything

Row = Mapping[str, Any]


def stored_definition(store: Store) -> dict[str, Any] | None:
    """The definition of the search that filled a store, as `tune.search_identity` keeps it; None if it was none.

    Raises:
        DamagedStoreError: it cannot be read.
    """
    found = store.read_json(SEARCH)
    if found is None:
        return None
    try:
        definition: dict[str, Any] = found["definition"]
        for line in definition["lines"]:
            if not line["fixed"].keys() >= set(_NAMING):
                raise KeyError("fixed")
            if not all(isinstance(line[name], dict) for name in _searched(line)):
                raise TypeError("a range is no mapping")
        if definition["objectives"][0] not in TRIALS.names:
            raise KeyError("objectives")
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DamagedStoreError(f"{store.path(SEARCH)} is damaged: {one_line(error)}") from None
    return definition


def stored_search(store: Store, definition: Mapping[str, Any]) -> Searched:
    """What the search did, as far as its suggestions are noted.

    Raises:
        DamagedStoreError: what is noted cannot be read.
    """
    found = store.read_json(SUGGESTIONS)
    asked: dict[str, Asked] = {}
    try:
        suggested = [] if found is None else list(zip(definition["lines"], found["lines"], strict=True))
        for n, (line, settings) in enumerate(suggested):
            for number, params in enumerate(settings):
                configs = (TrialConfig(**line["fixed"] | params, seed=seed) for seed in line["seed"])
                trial_ids = frozenset(config.trial_id for config in configs)
                for trial_id in trial_ids:
                    asked.setdefault(trial_id, Asked(line=n, number=number, trial_ids=trial_ids))
    except (KeyError, TypeError, ValueError, InvalidInputError) as error:
        raise DamagedStoreError(f"{store.path(SUGGESTIONS)} is damaged: {one_line(error)}") from None
    return Searched(tuned=tuned_fields(definition), objectives=tuple(definition["objectives"]), asked=asked)


def tuned_fields(definition: Mapping[str, Any]) -> frozenset[str]:
    """The fields beside the method's own that a search chose."""
    return frozenset(name for line in definition["lines"] for name in _searched(line)) - set(METHOD_FIELDS)


def history_figures(rows: list[dict[str, Any]], definition: Mapping[str, Any]) -> list[Figure]:
    """The objective of every setting in the order in which they ended, and the best so far (Optuna's history).

    Args:
        rows: of the table ``trials``.
        definition: of the search, as `tune.search_identity` keeps it.
    """
    objective = definition["objectives"][0]
    panels: dict[tuple[Any, ...], list[Series]] = defaultdict(list)
    for line, settings in _lines(rows, definition):
        order = tuple(float(k + 1) for k in range(len(settings)))
        where, mode, name = tuple(line[name] for name in _NAMING[:-1]), line["mode"], line["name"]
        hover = tuple(
            ", ".join(f"{k} {v:g}" for k, v in params.items()) + f": {100 * v0:.2f}" for params, v0, _ in settings
        )
        shown = tuple(100 * value for _, value, _ in settings)
        variant = sum(series.mode == mode and series.joined for series in panels[where])
        points = Series(name=name, mode=mode, variant=variant, x=order, y=shown, hover=hover, joined=False)
        best = tuple(None if v is None else 100 * v for v in _best_so_far(settings))
        reached = Series(name=f"{name}, best so far", mode=mode, variant=variant, x=order, y=best, hover=hover)
        panels[where] += [points, reached]
    return [
        Figure(
            name=f"history-{number}",
            title=f"Search: {model} on {dataset}, {regularizer.upper()}",
            caption="Mean over seeds of every setting, in the order in which they ended; the best so far is of those "
            "that got every seed, none of which diverged in its first epoch.",
            x_title="setting",
            x_whole=True,
            y_title=f"{objective_text(objective)} (%)",
            series=tuple(series),
        )
        for number, ((dataset, model, regularizer), series) in enumerate(panels.items())
    ]


def _best_so_far(settings: Sequence[tuple[Row, float, bool]]) -> list[float | None]:
    """None as long as none is complete: the mean of fewer seeds may be high because they are the easy ones."""
    best: list[float | None] = []
    for _, value, complete in settings:
        before = best[-1] if best else None
        best.append(max(value, value if before is None else before) if complete else before)
    return best


def importance_table(rows: list[dict[str, Any]], definition: Mapping[str, Any]) -> TextTable | None:
    """How much of the objective's spread each searched parameter explains; None if no line says anything."""
    import optuna  # only for searches: it takes a second to import

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    found = []
    for line, measured in _lines(rows, definition):
        names = list(measured[0][0])
        space: dict[str, Any] = {n: optuna.distributions.json_to_distribution(json.dumps(line[n])) for n in names}
        # A sweep's trials, merged into the store, may lie beyond what was searched.
        settings = [each for each in measured if all(space[k].low <= v <= space[k].high for k, v in each[0].items())]
        if len(names) < 2 or len(settings) < _LEAST or len({value for _, value, _ in settings}) < 2:
            continue
        study = optuna.create_study(direction="maximize")
        for params, value, _ in settings:
            study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=value))
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
        label = "/".join(str(line[name]) for name in (*_NAMING[:-1], "name"))
        found += [(label, name, f"{100 * share:.0f} %", str(len(settings))) for name, share in shares.items()]
    columns = ("line", "parameter", "importance", "settings")
    title = f"Importance of the searched parameters for {objective_text(definition['objectives'][0])} (fANOVA)"
    return TextTable(title, columns, tuple(found)) if found else None


def _lines(
    rows: list[dict[str, Any]], definition: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any], list[tuple[dict[str, Any], float, bool]]]]:
    """Each line of the search, and its settings in the order in which they ended.

    Of a setting the searched parameters, the objective, and whether every seed has ended and none diverged in its first
    epoch.

    A line's ``name`` is its mode, with what else tells it from lines of the same network.
    """
    objective = definition["objectives"][0]
    told = told_apart([line["fixed"] for line in definition["lines"]])
    for line, others in zip(definition["lines"], told, strict=True):
        fixed, names = line["fixed"], _searched(line)
        settings: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
        ended_seeds: dict[tuple[Any, ...], set[int]] = defaultdict(set)
        for row in rows:
            measured = row["status"] != "failed" and row[objective] is not None
            is_auto = "gamma" in names and row["gamma"] == "auto"  # which lies in no range
            if not is_auto and _is_of(row, fixed):
                values = tuple(row[name] for name in names)
                if measured or row["status"] == "failed":  # else it diverged in its first epoch
                    ended_seeds[values].add(row["seed"])
                if measured:
                    settings[values].append(row)
        ended = sorted(settings.items(), key=lambda item: max(row["finished_at"] for row in item[1]))
        found = []
        for values, group in ended:
            params = {n: int(v) if n == "gamma" and v is not None else v for n, v in zip(names, values, strict=True)}
            if None not in params.values():
                complete = ended_seeds[values].issuperset(line["seed"])
                # Equal but for their rounding, means have no spread to explain.
                found.append((params, round(mean([row[objective] for row in group]), DIGITS), complete))
        if found:
            method = method_text(fixed["mode"], gamma=fixed.get("gamma"))
            name = f"{method}, {fields_text(others)}" if others else method
            yield {**fixed, "name": name, **{name: line[name] for name in names}}, found


def _searched(line: Mapping[str, Any]) -> list[str]:
    return [name for name in line if name not in ("fixed", "seed")]


def _is_of(row: Row, fixed: Mapping[str, Any]) -> bool:
    return all(row[name] == (str(value) if name == "gamma" else value) for name, value in fixed.items())
