"""What a search found: the best settings of each of its lines, and how to train one again."""

import shlex
from collections.abc import Iterator, Sequence

from gcsr import TrialConfig
from tune.pareto import unbeaten
from tune.schema import CONFIG_FIELDS, METHOD_FIELDS
from tune.summary import DIGITS, Found, Row, Searched, Setting
from tune.words import value_text

__all__ = ["found_by", "interval_of", "train_command", "value_of"]

_MEANS = {"val_accuracy": "val_accuracy_mean", "test_accuracy": "accuracy_mean", "sparsity": "sparsity_mean"}
_INTERVALS = {"val_accuracy": "val_accuracy_ci95", "test_accuracy": "accuracy_ci95"}


def value_of(setting: Setting, objective: str) -> float | None:
    """The mean of what a search maximized; None if nothing was measured."""
    value: float | None = getattr(setting, _MEANS[objective])
    return value


def interval_of(setting: Setting, objective: str) -> float | None:
    """Half of the 95 % interval of that mean; None if there is none."""
    half: float | None = getattr(setting, _INTERVALS[objective]) if objective in _INTERVALS else None
    return half


def found_by(search: Searched, settings: Sequence[Setting]) -> Iterator[Found]:
    """What each line of a search found; nothing of a line of which no setting is complete yet."""
    lines: dict[int, list[Setting]] = {}
    for setting in settings:
        asked = search.asked_as(setting.trial_ids)
        if asked is not None and setting.complete and value_of(setting, search.objectives[0]) is not None:
            lines.setdefault(asked.line, []).append(setting)
    for _, complete in sorted(lines.items()):
        yield _found(search, complete, settings)


def _found(search: Searched, complete: list[Setting], settings: Sequence[Setting]) -> Found:
    # As the search itself ranks them: the mean that is shown, without trials that diverged at once, is of lucky ones.
    ranking = sorted(complete, key=lambda s: (s.unmeasured == 0, s.sought, -(s.suggestion or 0)), reverse=True)
    best = ranking[0]
    reached, half = best.sought[0], interval_of(best, search.objectives[0])
    if len(search.objectives) > 1:
        ranking = unbeaten(ranking, lambda s: s.sought)
    return Found(
        **best.family,
        regularizer=best.regularizer,
        mode=best.mode,
        objectives=search.objectives,
        ranking=tuple(ranking),
        settings=len(complete),
        equal=sum(round(s.sought[0], DIGITS) == round(reached, DIGITS) for s in complete) - 1,
        within=None if half is None else sum(s.sought[0] >= reached - half for s in complete) - 1,
        since=sum((s.suggestion or 0) > (best.suggestion or 0) for s in complete),
        refit=_refit(best, settings),
    )


def _refit(best: Setting, settings: Sequence[Setting]) -> Setting | None:
    """The setting trained on all training images; None if it was so already, or was not yet."""
    wanted = _fields(best) | {"holdout": 0.0}
    return None if _fields(best) == wanted else next((s for s in settings if _fields(s) == wanted and s.n), None)


def _fields(setting: Setting) -> Row:
    """Every field of its config but the seed."""
    return setting.recipe | setting.tuned | {name: getattr(setting, name) for name in METHOD_FIELDS}


def train_command(setting: Setting) -> str:
    """The command that trains a setting again, with its first seed; fields at their defaults are left out."""
    named = ("dataset", "model", "regularizer", "mode", "lam", "seed")
    fields = _fields(setting) | {"seed": min(setting.seeds, default=0)}
    usual = TrialConfig(**{name: fields[name] for name in named}).to_dict()
    given = {name: value_text(fields[name]) for name in CONFIG_FIELDS}  # as texts, as a stored γ is one
    told = (name for name in CONFIG_FIELDS if name in named or given[name] != value_text(usual[name]))
    options = (f"--{name.replace('_', '-')} {shlex.quote(given[name])}" for name in told)
    return " ".join(("gcsr train", *options))
