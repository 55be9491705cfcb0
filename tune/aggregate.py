"""From the store's rows to the paper's tables: settings, comparisons (Table 2), tolerance (Figure 7), compression."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import pyarrow as pa

from tune import stats
from tune.schema import CONFIG_FIELDS, FAMILY_FIELDS, METHOD_FIELDS
from tune.words import network_texts

__all__ = ["MEMORY", "Compared", "Compression", "Setting", "Summary", "Tolerance", "compression_rate", "summarize"]

_GATED = ("ours", "ours_orig")
_TRIAL_FIELDS = (
    *("trial_id", "seed", "status", "error", "test_accuracy", "val_accuracy", "sparsity", "pi", "imposed_fraction"),
    *("gamma_used", "seconds"),
)
NEAR = 0.01  # one percentage point
MEMORY = "1GB"  # of DuckDB while it groups; beyond it spills to disk

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One configuration over its seeds. Accuracies are fractions; half-widths are None for fewer than two seeds.

    ``n`` counts the trials behind the means: finished and collapsed ones, and diverged ones that have metrics;
    ``seeds``, ``accuracies`` and ``measured_ids`` are of these trials, ``trial_ids`` of all. ``failed`` trials are
    counted and nothing else. ``learned`` says that every trial ended above chance, so that none failed. ``network``
    names the family: it tells the fields in which families of one network and data set differ. ``tuned`` holds the
    fields beside the method's own that a search chose.
    """

    dataset: str
    model: str
    network: str
    width: float
    regularizer: str
    mode: str
    lam: float
    mu: float | None
    gamma: str | None
    gamma_threshold: float | None
    recipe: Row
    tuned: Row
    n: int
    collapsed: int
    diverged: int
    failed: int
    learned: bool
    accuracy_mean: float | None
    accuracy_ci95: float | None
    val_accuracy_mean: float | None
    val_accuracy_ci95: float | None
    sparsity_mean: float | None
    pi_mean: float | None
    imposed_fraction_mean: float | None
    gamma_used_mean: float | None
    seconds_mean: float | None
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    measured_ids: tuple[str, ...]
    trial_ids: tuple[str, ...]

    @property
    def selection(self) -> float | None:
        """What λ is chosen by: mean accuracy on the hold-out split, on the test split without one."""
        return self.val_accuracy_mean if self.val_accuracy_mean is not None else self.accuracy_mean

    @property
    def stopped(self) -> bool:
        """Whether a trial ended without having learned; a failed one shows neither this nor that it learns."""
        return self.collapsed + self.diverged > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _OfFamily:
    """What says which family a finding belongs to (see `_where`)."""

    dataset: str
    model: str
    network: str
    width: float
    recipe: Row


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared(_OfFamily):
    """The best-tuned setting of a gated mode beside the best-tuned baseline (Table 2).

    ``selected_on`` is the split that the settings were chosen on; None if each mode had but one, as after a refit.

    ``refitted`` says that the two modes were chosen on held-out images and that what was chosen was trained again on
    all images, with the same comparison elsewhere in the summary. A search stores both: many settings with its
    ``holdout``, and the best of each mode with 0. That is one question asked twice, so one of the two counts for Holm's
    correction: the refits, as they are the networks that one would use and nothing was left to choose among them. The
    comparison that chose has a p-value of its own and no corrected one.
    """

    regularizer: str
    mode: str
    baseline_lam: float
    baseline_tuned: Row
    baseline_n: int
    baseline_accuracy: float
    baseline_ci95: float | None
    ours_lam: float
    ours_mu: float | None
    ours_gamma: str | None
    ours_gamma_threshold: float | None
    ours_tuned: Row
    ours_n: int
    ours_accuracy: float
    ours_ci95: float | None
    relative_improvement: float | None
    p_value: float | None
    p_value_holm: float | None
    hedges_g: float | None
    difference_low: float | None
    difference_high: float | None
    probability_of_improvement: float
    significant: bool | None
    significant_holm: bool | None
    tolerance_lam: float | None
    collapse_lam: float | None
    selected_on: str | None
    refitted: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance(_OfFamily):
    """Where a mode stops learning: the largest λ at which all seeds learn, the smallest at which one does not.

    ``tolerance_lam`` is None if there is no λ at which all do, ``collapse_lam`` if there is none at which one collapses
    or diverges: a λ with failed trials may be neither. ``tried`` counts the λ.
    """

    regularizer: str
    mode: str
    mu: float | None
    gamma: str | None
    gamma_threshold: float | None
    tolerance_lam: float | None
    collapse_lam: float | None
    tried: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Compression(_OfFamily):
    """Table 3: the sparsest gated L1 setting that is at least as accurate as the best L1 baseline.

    ``near_*`` is the sparsest that gives up at most `NEAR` of accuracy. Either is None if there is none.
    """

    baseline_lam: float
    baseline_tuned: Row
    baseline_sparsity: float
    baseline_accuracy: float
    ours_mode: str | None
    ours_lam: float | None
    ours_tuned: Row | None
    ours_sparsity: float | None
    ours_accuracy: float | None
    compression: float | None
    near_mode: str | None
    near_lam: float | None
    near_tuned: Row | None
    near_sparsity: float | None
    near_accuracy: float | None
    near_compression: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """All that a report says about the trials of a store."""

    settings: tuple[Setting, ...]
    comparisons: tuple[Compared, ...]
    tolerance: tuple[Tolerance, ...]
    compression: tuple[Compression, ...]
    failures: tuple[tuple[str, str], ...]
    """Trial id and error of every failed trial."""


def compression_rate(baseline_sparsity: float, ours_sparsity: float) -> float | None:
    """How many times fewer non-zero parameters: ``(1 − baseline) / (1 − ours)``; None for an empty network."""
    return (1 - baseline_sparsity) / (1 - ours_sparsity) if ours_sparsity < 1 else None


def summarize(trials: pa.Table, tuned: Collection[str] = ()) -> Summary:
    """Aggregate the rows of the ``trials`` table.

    Args:
        trials: the table.
        tuned: config fields that a search chose, as it chose λ: settings that differ in them compete.
    """
    rows = _grouped(trials)
    recipe_fields = tuple(name for name in FAMILY_FIELDS if name not in tuned)
    networks = network_texts([config for config, _ in rows], recipe_fields)
    of_rows = (
        _setting(config, group, network, recipe_fields) for (config, group), network in zip(rows, networks, strict=True)
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
        failures=tuple(
            sorted(
                (row["trial_id"], row["error"] or "") for _, group in rows for row in group if row["status"] == "failed"
            )
        ),
    )


def _order(setting: Setting) -> tuple[Any, ...]:
    modes = ("none", "baseline", *_GATED)
    recipe, tuned = (tuple(map(_sortable, fields.values())) for fields in (setting.recipe, setting.tuned))
    gamma = _sortable(int(setting.gamma) if setting.gamma and setting.gamma.isdigit() else setting.gamma)
    rest = (setting.mu or 0, gamma, setting.gamma_threshold or 0)
    return (recipe, setting.regularizer, modes.index(setting.mode), setting.lam, *rest, tuned)


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


def _setting(first: Row, group: list[Row], network: str, recipe_fields: Sequence[str]) -> Setting:
    # A failed trial measured nothing; one that diverged in its first epoch has no accuracy. Neither is a zero.
    measured = [row for row in group if row["status"] != "failed" and row["test_accuracy"] is not None]
    count = {status: sum(row["status"] == status for row in group) for status in ("collapsed", "diverged", "failed")}
    accuracies = [row["test_accuracy"] for row in measured]
    held_out = [row["val_accuracy"] for row in measured if row["val_accuracy"] is not None]

    def average(name: str) -> float | None:
        values = [row[name] for row in measured if row[name] is not None]
        return stats.mean(values) if values else None

    return Setting(
        **{name: first[name] for name in ("dataset", "model", "width", *METHOD_FIELDS)},
        network=network,
        recipe={name: first[name] for name in recipe_fields},
        tuned={name: first[name] for name in FAMILY_FIELDS if name not in recipe_fields},
        n=len(measured),
        **count,
        learned=bool(measured) and not any(count.values()),
        accuracy_mean=stats.mean(accuracies) if accuracies else None,
        accuracy_ci95=stats.t_half_width(accuracies) if accuracies else None,
        val_accuracy_mean=stats.mean(held_out) if held_out else None,
        val_accuracy_ci95=stats.t_half_width(held_out) if held_out else None,
        sparsity_mean=average("sparsity"),
        pi_mean=average("pi"),
        imposed_fraction_mean=average("imposed_fraction"),
        gamma_used_mean=average("gamma_used"),
        seconds_mean=average("seconds"),
        seeds=tuple(row["seed"] for row in measured),
        accuracies=tuple(accuracies),
        measured_ids=tuple(row["trial_id"] for row in measured),
        trial_ids=tuple(row["trial_id"] for row in group),
    )


def _best(settings: Iterable[Setting]) -> Setting | None:
    """The best-tuned setting: highest mean on the selection split; of equals the weakest λ."""
    usable = [setting for setting in settings if setting.selection is not None]
    return max(usable, key=lambda setting: (setting.selection, -setting.lam), default=None)


def _of(family: Sequence[Setting], regularizer: str, *modes: str) -> list[Setting]:
    return [s for s in family if s.regularizer == regularizer and s.mode in modes]


def _regularizers(family: Sequence[Setting]) -> list[str]:
    return [name for name in ("l2", "l1") if any(s.regularizer == name for s in family)]


def _where(setting: Setting) -> Row:
    return {name: getattr(setting, name) for name in ("dataset", "model", "network", "width", "recipe")}


def _tolerances(family: Sequence[Setting]) -> Iterator[Tolerance]:
    for regularizer in _regularizers(family):
        lines: dict[tuple[Any, ...], list[Setting]] = defaultdict(list)
        for setting in _of(family, regularizer, "baseline", *_GATED):
            if setting.n or setting.diverged:
                lines[setting.mode, setting.mu, setting.gamma, setting.gamma_threshold].append(setting)
        for (mode, mu, gamma, threshold), line in lines.items():
            yield Tolerance(
                **_where(line[0]),
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
        baseline = _best(plain)
        if baseline is None or baseline.accuracy_mean is None:
            continue
        level = next(
            t for t in tolerance if (t.recipe, t.regularizer, t.mode) == (baseline.recipe, regularizer, "baseline")
        )
        for mode in _GATED:
            gated = _of(family, regularizer, mode)
            ours = _best(gated)
            if ours is None or ours.accuracy_mean is None:
                continue
            test = stats.compare(ours.accuracies, baseline.accuracies)
            yield Compared(
                **_where(baseline),
                regularizer=regularizer,
                mode=mode,
                baseline_lam=baseline.lam,
                baseline_tuned=baseline.tuned,
                baseline_n=baseline.n,
                baseline_accuracy=baseline.accuracy_mean,
                baseline_ci95=baseline.accuracy_ci95,
                ours_lam=ours.lam,
                ours_mu=ours.mu,
                ours_gamma=ours.gamma,
                ours_gamma_threshold=ours.gamma_threshold,
                ours_tuned=ours.tuned,
                ours_n=ours.n,
                ours_accuracy=ours.accuracy_mean,
                ours_ci95=ours.accuracy_ci95,
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
    return repr((recipe, compared.regularizer, compared.mode))


def _compression(family: Sequence[Setting]) -> Compression | None:
    baseline = _best(_of(family, "l1", "baseline"))
    if baseline is None or baseline.accuracy_mean is None or baseline.sparsity_mean is None:
        return None
    level = baseline.selection
    assert level is not None
    gated = [s for s in _of(family, "l1", *_GATED) if s.selection is not None and s.sparsity_mean is not None]
    found: Row = {}
    for prefix, enough, name in (("ours", level, "compression"), ("near", level - NEAR, "near_compression")):
        good = [s for s in gated if s.selection is not None and s.selection >= enough]
        ours = max(good, key=lambda s: s.sparsity_mean or 0.0, default=None)
        sparse = ours.sparsity_mean if ours else None
        found |= {
            f"{prefix}_mode": ours.mode if ours else None,
            f"{prefix}_lam": ours.lam if ours else None,
            f"{prefix}_tuned": ours.tuned if ours else None,
            f"{prefix}_sparsity": sparse,
            f"{prefix}_accuracy": ours.accuracy_mean if ours else None,
            name: None if sparse is None else compression_rate(baseline.sparsity_mean, sparse),
        }
    return Compression(
        **_where(baseline),
        baseline_lam=baseline.lam,
        baseline_tuned=baseline.tuned,
        baseline_sparsity=baseline.sparsity_mean,
        baseline_accuracy=baseline.accuracy_mean,
        **found,
    )
