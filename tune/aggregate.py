"""From the store's rows to what a report says (`tune.summary`)."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import duckdb
import pyarrow as pa

from gcsr.names import MODES
from tune import stats
from tune.found import found_by
from tune.schema import CONFIG_FIELDS, FAMILY_FIELDS, METHOD_FIELDS
from tune.search_spec import objective_means
from tune.summary import (
    DIGITS,
    NEAR,
    REPORTED,
    Compared,
    Compression,
    Row,
    Searched,
    Setting,
    Sparsest,
    Summary,
    Tolerance,
)
from tune.words import network_texts

__all__ = ["GATED", "MEMORY", "best_setting", "compression_rate", "summarize"]

GATED = ("ours", "ours_orig")  # modes that impose λ only where learning bears it
_ROUNDING = 10.0**-DIGITS
_TRIAL_FIELDS = (
    *("trial_id", "seed", "status", "error", "test_accuracy", "val_accuracy", "sparsity", "pi", "imposed_fraction"),
    *("gamma_used", "seconds"),
)
MEMORY = "1GB"  # of DuckDB while it groups; beyond it spills to disk


def compression_rate(baseline_sparsity: float, ours_sparsity: float) -> float | None:
    """How many times fewer non-zero parameters: ``(1 − baseline) / (1 − ours)``; None for an empty network."""
    return (1 - baseline_sparsity) / (1 - ours_sparsity) if ours_sparsity < 1 else None


def summarize(trials: pa.Table, search: Searched | None = None) -> Summary:
    """Aggregate the rows of the ``trials`` table.

    Args:
        trials: the table.
        search: that filled the store: settings that differ in what it chose compete, as those that differ in λ do.
    """
    tuned = frozenset() if search is None else search.tuned
    rows = _grouped(trials)
    recipe_fields = tuple(name for name in FAMILY_FIELDS if name not in tuned)
    networks = network_texts([config for config, _ in rows], recipe_fields)
    of_rows = (
        _setting(config, group, network, recipe_fields, search)
        for (config, group), network in zip(rows, networks, strict=True)
    )
    settings = sorted(of_rows, key=_order)
    families: dict[tuple[Any, ...], list[Setting]] = defaultdict(list)
    for setting in settings:
        families[tuple(setting.recipe.values())].append(setting)
    tolerance = [each for family in families.values() for each in _tolerances(family)]
    comparisons = [each for family in families.values() for each in _comparisons(family, tolerance)]
    return Summary(
        settings=tuple(settings),
        comparisons=_corrected(comparisons),
        tolerance=tuple(tolerance),
        compression=tuple(found for family in families.values() if (found := _compression(family)) is not None),
        found=() if search is None else tuple(found_by(search, settings)),
        searched=search is not None,
        failures=tuple(
            sorted(
                (row["trial_id"], row["error"] or "") for _, group in rows for row in group if row["status"] == "failed"
            )
        ),
    )


def _order(setting: Setting) -> tuple[Any, ...]:
    recipe, tuned = (tuple(map(_sortable, fields.values())) for fields in (setting.recipe, setting.tuned))
    mode, *rest = _method_order(setting)
    return (recipe, REPORTED.index(setting.regularizer), mode, setting.lam, *rest, tuned)


def _method_order(setting: Setting) -> tuple[Any, ...]:
    gamma = _sortable(int(setting.gamma) if setting.gamma and setting.gamma.isdigit() else setting.gamma)
    return (MODES.index(setting.mode), setting.mu or 0, gamma, setting.gamma_threshold or 0)


def _sortable(value: Any) -> tuple[float, str]:
    """Numbers by their size, names by the alphabet."""
    return (value, "") if isinstance(value, int | float) else (0.0, str(value))


def _grouped(trials: pa.Table) -> list[tuple[Row, list[Row]]]:
    """Each configuration but for the seed, and its trials ordered by seed; grouped by DuckDB, outside of Python."""
    names = [name for name in CONFIG_FIELDS if name != "seed"]
    of_trial = ", ".join(f"{name} := {name}" for name in _TRIAL_FIELDS)
    with duckdb.connect(config={"memory_limit": MEMORY}) as connection:
        connection.register("trials", trials)
        found = connection.sql(
            f"select {', '.join(names)}, list(struct_pack({of_trial}) order by seed, trial_id) from trials group by all"
        ).fetchall()
    return [(dict(zip(names, row[:-1], strict=True)), row[-1]) for row in found]


def _setting(
    first: Row, group: list[Row], network: str, recipe_fields: Sequence[str], search: Searched | None
) -> Setting:
    # A failed trial measured nothing; one that diverged in its first epoch has no accuracy. Neither is a zero.
    measured = [row for row in group if row["status"] != "failed" and row["test_accuracy"] is not None]
    count = {status: sum(row["status"] == status for row in group) for status in ("collapsed", "diverged", "failed")}
    accuracies = [row["test_accuracy"] for row in measured]
    held_out = [row["val_accuracy"] for row in measured if row["val_accuracy"] is not None]
    trial_ids = tuple(row["trial_id"] for row in group)
    asked = None if search is None else search.asked_as(trial_ids)

    def average(name: str) -> float | None:
        values = [row[name] for row in measured if row[name] is not None]
        return stats.mean(values) if values else None

    sought: tuple[float, ...] = ()
    if search is not None and asked is not None:
        sought = objective_means(group, search.objectives) or (0.0,) * len(search.objectives)
    return Setting(
        **{name: first[name] for name in ("dataset", "model", "width", *METHOD_FIELDS)},
        network=network,
        recipe={name: first[name] for name in recipe_fields},
        tuned={name: first[name] for name in FAMILY_FIELDS if name not in recipe_fields},
        n=len(measured),
        **count,
        learned=bool(measured) and not any(count.values()),
        accuracy_mean=average("test_accuracy"),
        accuracy_ci95=stats.t_half_width(accuracies) if accuracies else None,
        val_accuracy_mean=average("val_accuracy"),
        val_accuracy_ci95=stats.t_half_width(held_out) if held_out else None,
        sparsity_mean=average("sparsity"),
        pi_mean=average("pi"),
        imposed_fraction_mean=average("imposed_fraction"),
        gamma_used_mean=average("gamma_used"),
        seconds_mean=average("seconds"),
        seeds=tuple(row["seed"] for row in measured),
        accuracies=tuple(accuracies),
        measured_ids=tuple(row["trial_id"] for row in measured),
        trial_ids=trial_ids,
        suggestion=None if asked is None else asked.number,
        sought=sought,
        complete=asked is None or asked.trial_ids <= set(trial_ids),
    )


def best_setting(settings: Iterable[Setting]) -> Setting | None:
    """The best-tuned setting: highest mean on the selection split; of equals what a search took, or the weakest λ.

    One of which a trial diverged at once, or that a search gave fewer seeds than others, is it only if there is no
    other: its mean is of those that were lucky.
    """
    usable = [setting for setting in settings if setting.selection is not None]
    return max(usable, key=_preference, default=None)


def _preference(s: Setting) -> tuple[Any, ...]:
    mean = s.selection or 0.0
    # A search compares the means as they are, then its other objectives, and of equals takes the first.
    searched = (-1.0, (), 0) if s.suggestion is None else (mean, s.sought, -s.suggestion)
    return (s.unmeasured == 0 and s.complete, round(mean, DIGITS), *searched, -s.lam)


def _of(family: Sequence[Setting], regularizer: str, *modes: str) -> list[Setting]:
    return [s for s in family if s.regularizer == regularizer and s.mode in modes]


def _regularizers(family: Sequence[Setting]) -> list[str]:
    return [name for name in REPORTED[1:] if any(s.regularizer == name for s in family)]


def _tolerances(family: Sequence[Setting]) -> Iterator[Tolerance]:
    for regularizer in _regularizers(family):
        lines: dict[tuple[Any, ...], list[Setting]] = defaultdict(list)
        for setting in _of(family, regularizer, "baseline", *GATED):
            if setting.n or setting.diverged:
                lines[setting.mode, setting.mu, setting.gamma, setting.gamma_threshold].append(setting)
        for (mode, mu, gamma, threshold), line in sorted(lines.items(), key=lambda item: _method_order(item[1][0])):
            yield Tolerance(
                **line[0].family,
                regularizer=regularizer,
                mode=mode,
                mu=mu,
                gamma=gamma,
                gamma_threshold=threshold,
                tolerance_lam=max((s.lam for s in line if s.learned), default=None),
                collapse_lam=min((s.lam for s in line if s.stopped), default=None),
                tried=len(line),
            )


def _comparisons(family: Sequence[Setting], tolerance: Sequence[Tolerance]) -> Iterator[Compared]:
    for regularizer in _regularizers(family):
        plain = _of(family, regularizer, "baseline")
        baseline = best_setting(plain)
        if baseline is None or baseline.accuracy_mean is None:
            continue
        level = next(
            t for t in tolerance if (t.recipe, t.regularizer, t.mode) == (baseline.recipe, regularizer, "baseline")
        )
        for mode in GATED:
            gated = _of(family, regularizer, mode)
            ours = best_setting(gated)
            if ours is None or ours.accuracy_mean is None:
                continue
            test = stats.compare(ours.accuracies, baseline.accuracies)
            yield Compared(
                **baseline.family,
                regularizer=regularizer,
                mode=mode,
                baseline=baseline,
                ours=ours,
                relative_improvement=test.relative,
                p_value=test.p_value,
                hedges_g=test.hedges_g,
                difference_low=test.low,
                difference_high=test.high,
                probability_of_improvement=test.probability_of_improvement,
                significant=None if test.p_value is None else test.p_value < stats.ALPHA,
                tolerance_lam=level.tolerance_lam,
                collapse_lam=level.collapse_lam,
                selected_on=_selected_on(plain, gated),
                p_value_holm=None,  # until all comparisons are known
                significant_holm=None,
                refitted=False,
            )


def _selected_on(*modes: Sequence[Setting]) -> str | None:
    """The split that decides between the settings of a mode; None where no mode has two to decide between."""
    usable = [[setting for setting in settings if setting.selection is not None] for settings in modes]
    if all(len(settings) < 2 for settings in usable):
        return None
    return "test" if usable[0][0].val_accuracy_mean is None else "validation"


def _corrected(comparisons: Sequence[Compared]) -> tuple[Compared, ...]:
    """With Holm's correction over all but those whose refit stands for them (see `Compared`)."""
    refits = {_question(each) for each in comparisons if _is_refit(each)}
    refitted = [each.selected_on == "validation" and _question(each) in refits for each in comparisons]
    values = stats.holm([None if again else each.p_value for each, again in zip(comparisons, refitted, strict=True)])
    return tuple(
        replace(each, refitted=again, p_value_holm=p, significant_holm=None if p is None else p < stats.ALPHA)
        for each, again, p in zip(comparisons, refitted, values, strict=True)
    )


def _is_refit(compared: Compared) -> bool:
    """Whether it tests, on all training images, settings that were chosen elsewhere (see `Compared`)."""
    nothing_chosen = compared.selected_on is None and compared.recipe["holdout"] == 0
    return nothing_chosen and compared.p_value is not None


def _question(compared: Compared) -> str:
    """What a comparison has in common with that of its refits."""
    recipe = {name: value for name, value in compared.recipe.items() if name != "holdout"}
    settings = [[getattr(s, name) for name in (*METHOD_FIELDS, "tuned")] for s in (compared.baseline, compared.ours)]
    return repr((recipe, settings))


def _compression(family: Sequence[Setting]) -> Compression | None:
    baseline = best_setting(_of(family, "l1", "baseline"))
    if baseline is None or baseline.accuracy_mean is None or baseline.sparsity_mean is None:
        return None
    if baseline.n == baseline.collapsed + baseline.diverged:
        return None  # it learned nothing, and a network that knows nothing can be as small as one likes
    level = baseline.selection
    assert level is not None
    gated, plain = _of(family, "l1", *GATED), _of(family, "l1", "baseline")
    return Compression(
        **baseline.family,
        baseline=baseline,
        ours=_sparsest(gated, level, baseline.sparsity_mean),
        near=_sparsest(gated, level - NEAR, baseline.sparsity_mean),
        plain=_sparsest(plain, level - NEAR, baseline.sparsity_mean),
    )


def _sparsest(settings: Sequence[Setting], enough: float, baseline_sparsity: float) -> Sparsest | None:
    """The sparsest of the settings that are as accurate as that is enough; None if none is."""
    measured = [
        (s.sparsity_mean, s) for s in settings if s.sparsity_mean is not None and not s.unmeasured and s.complete
    ]
    good = [(sparsity, s) for sparsity, s in measured if s.selection is not None and s.selection >= enough - _ROUNDING]
    if not good:
        return None
    sparsity, setting = max(good, key=lambda each: each[0])
    return Sparsest(setting=setting, compression=compression_rate(baseline_sparsity, sparsity))
