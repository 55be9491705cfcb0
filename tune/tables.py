"""A summary as tables of text."""

from collections.abc import Sequence
from dataclasses import dataclass

from gcsr import TrialConfig
from gcsr.gate import GAMMA
from tune.found import interval_of, value_of
from tune.paper import TABLE2, TABLE2_NONE, TABLE3
from tune.summary import DIGITS, Compared, Compression, Found, Setting, Sparsest, Summary, Tolerance
from tune.words import (
    NONE,
    fields_text,
    float_text,
    method_text,
    number,
    percent,
    probability,
    signed_percent,
    tuned_text,
)

__all__ = [
    "TextTable",
    "accuracy_of",
    "lam_of",
    "method_of",
    "objective_text",
    "reached_text",
    "result_tables",
    "setting_cells",
    "settings_table",
    "telling_levels",
    "text_tables",
]

_RANKED = 3  # settings of each line of a search that are shown …
_FRONT = 10  # … and of its Pareto front


@dataclass(frozen=True, slots=True)
class TextTable:
    """A titled table of strings; every row has as many cells as there are columns."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def text_tables(summary: Summary) -> list[TextTable]:
    """Every table in which there is something to show."""
    settings = [settings_table(summary.settings)] if summary.settings else []
    return settings + result_tables(summary)


def result_tables(summary: Summary) -> list[TextTable]:
    """Tables 2 and 3, the tolerance levels of Figure 7, what a search found and what failed, if there is any."""
    tables = []
    if summary.found:
        tables.append(_found(summary.found))
    if summary.comparisons:
        tables.append(_comparisons(summary.comparisons))
    levels = telling_levels(summary)
    if levels:
        tables.append(_tolerance(levels))
    if summary.compression:
        tables.append(_compression(summary.compression))
    beside = _paper(summary)
    if beside.rows:
        tables.append(beside)
    if summary.failures:
        rows = tuple((trial_id, _printable(error)) for trial_id, error in summary.failures)
        tables.append(TextTable("Failed trials", ("trial", "error"), rows))
    return tables


def telling_levels(summary: Summary) -> list[Tolerance]:
    """The tolerance levels; of a search not those of methods at one λ: it tries many, and its refits have one each."""
    return [level for level in summary.tolerance if level.tried > 1 or not summary.searched]


def _printable(text: str) -> str:
    """As one line without control characters, which an error may have brought."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def method_of(of: Setting | Tolerance) -> str:
    """The mode with the μ or γ that it reads."""
    return method_text(of.mode, mu=of.mu, gamma=of.gamma, gamma_threshold=of.gamma_threshold)


def accuracy_of(s: Setting) -> str:
    """The mean accuracy with its half interval."""
    return percent(s.accuracy_mean, s.accuracy_ci95)


def lam_of(s: Setting) -> str:
    """λ, and what else a search chose."""
    return tuned_text(s.lam, s.tuned)


def setting_cells(s: Setting) -> tuple[str, ...]:
    """A setting's row of the table of settings."""
    notes = [f"{getattr(s, status)} {status}" for status in ("collapsed", "diverged", "failed") if getattr(s, status)]
    return (
        s.network,
        s.regularizer,
        method_of(s),
        lam_of(s),
        str(s.n),
        accuracy_of(s),
        number(s.sparsity_mean),
        number(s.pi_mean),
        number(s.imposed_fraction_mean, 2),
        ", ".join(notes),
    )


def settings_table(settings: Sequence[Setting]) -> TextTable:
    """A row for each setting."""
    columns = ("network", "reg.", "mode", "λ", "n", "accuracy", "sparsity", "π", "imposed", "notes")
    rows = tuple(setting_cells(setting) for setting in settings)
    return TextTable("Settings (mean ± half of the 95 % t interval over seeds)", columns, rows)


def objective_text(objective: str) -> str:
    """What a search maximized, in words."""
    return objective.replace("val_", "validation ").replace("_", " ")


def reached_text(s: Setting, objective: str) -> str:
    """What a setting reached of it, with the half interval of an accuracy."""
    value = value_of(s, objective)
    return number(value) if objective == "sparsity" else percent(value, interval_of(s, objective))


def _found(found: Sequence[Found]) -> TextTable:
    objectives = found[0].objectives
    shown = objectives if "test_accuracy" in objectives else (*objectives, "test_accuracy")
    rows = []
    for each in found:
        places = _places(each)
        if each.refit is not None:
            places.append(("refit", each.refit))
        for place, s in places:
            reached = (reached_text(s, name) for name in shown)
            rows.append((s.network, s.regularizer, method_of(s), lam_of(s), place, str(s.n), *reached))
    columns = ("network", "reg.", "mode", "λ", "place", "n", *map(objective_text, shown))
    title = "Best found by the search" if len(objectives) == 1 else "Pareto front of the search"
    return TextTable(title, columns, tuple(rows))


def _places(found: Found) -> list[tuple[str, Setting]]:
    """The first few of a line; equals share a place, and a Pareto front has none."""
    if len(found.objectives) > 1:
        return [("front", s) for s in found.ranking[:_FRONT]]
    reached = [round(value_of(s, found.objectives[0]) or 0.0, DIGITS) for s in found.ranking]
    return [
        (f"{reached.index(value) + 1} of {found.settings}", s)
        for value, s in zip(reached[:_RANKED], found.ranking, strict=False)
    ]


def _comparisons(comparisons: Sequence[Compared]) -> TextTable:
    rows = tuple(
        (
            c.network,
            c.regularizer,
            f"{accuracy_of(c.baseline)} at {lam_of(c.baseline)}",
            method_of(c.ours),
            f"{accuracy_of(c.ours)} at {lam_of(c.ours)}",
            signed_percent(c.relative_improvement),
            probability(c.p_value),
            probability(c.p_value_holm),
            number(c.hedges_g, 2),
            _interval(c.difference_low, c.difference_high),
            number(c.probability_of_improvement, 2),
            {None: NONE, True: "yes", False: "no"}[c.significant],
        )
        for c in comparisons
    )
    columns = (
        "network",
        "reg.",
        "best baseline",
        "mode",
        "best",
        "rel.",
        "p",
        "p (Holm)",
        "g",
        "95 % of diff.",
        "P(better)",
        "sig.",
    )
    title = "Accuracy, best λ of each mode (Table 2; Welch's t-test, α = 0.05; bootstrap of the difference in points)"
    return TextTable(title, columns, rows)


def _interval(low: float | None, high: float | None) -> str:
    return NONE if low is None or high is None else f"{100 * low:+z.2f} … {100 * high:+z.2f}"


def _tolerance(levels: Sequence[Tolerance]) -> TextTable:
    rows = tuple(
        (t.network, t.regularizer, method_of(t), float_text(t.tolerance_lam), float_text(t.collapse_lam))
        for t in levels
    )
    columns = ("network", "reg.", "mode", "largest λ at which all seeds learn", "smallest at which one does not")
    return TextTable("Tolerance level (Figures 1 and 7)", columns, rows)


def _compression(found: Sequence[Compression]) -> TextTable:
    rows = tuple(
        (
            c.network,
            _sparsity(c.baseline),
            _sparsest(c.ours),
            _times(c.ours),
            _sparsest(c.near),
            _times(c.near),
            _sparsest(c.plain),
            _times(c.plain),
        )
        for c in found
    )
    columns = ("network", "best baseline", "sparsest gated", "smaller")
    near = ("sparsest gated within a point", "smaller", "sparsest baseline within it", "smaller")
    return TextTable(
        "Compression by L1 at the baseline's best accuracy (Table 3; sparsity at λ, accuracy)", columns + near, rows
    )


def _sparsest(found: Sparsest | None) -> str:
    return NONE if found is None else f"{method_of(found.setting)} {_sparsity(found.setting)}"


def _sparsity(s: Setting) -> str:
    return f"{number(s.sparsity_mean)} at {lam_of(s)} ({percent(s.accuracy_mean)})"


def _times(found: Sparsest | None) -> str:
    return NONE if found is None or found.compression is None else _rate(found.compression)


def _rate(compression: float) -> str:
    return f"{compression:.1f}×"


def _paper(summary: Summary) -> TextTable:
    """Ours beside the paper's, where data set and network are the paper's own, and what else is not."""
    rows: list[tuple[str, ...]] = []
    for s in summary.settings:
        paper = TABLE2_NONE.get((s.dataset, s.model)) if s.mode == "none" and s.width == 1 else None
        if paper:
            rows.append((s.network, "no L1/L2 accuracy", f"{paper[0]:.2f} ± {paper[1]:.2f} %",
                         accuracy_of(s), str(s.n), _not_the_papers(s)))  # fmt: skip
    for c in summary.comparisons:
        accuracy = TABLE2.get((c.dataset, c.model, c.regularizer)) if c.mode == "ours" and c.width == 1 else None
        if accuracy:
            reg, runs, other = c.regularizer.upper(), f"{c.baseline.n}, {c.ours.n}", _not_the_papers(c)
            gamma = "" if c.ours.gamma == str(GAMMA) else method_of(c.ours)
            rows += [
                (c.network, f"{reg} baseline accuracy", f"{accuracy.baseline:.2f} ± {accuracy.baseline_ci95:.2f} %",
                 accuracy_of(c.baseline), str(c.baseline.n), other),
                (c.network, f"{reg} ours accuracy", f"{accuracy.ours:.2f} ± {accuracy.ours_ci95:.2f} %",
                 accuracy_of(c.ours), str(c.ours.n), _joined(other, gamma)),
                (c.network, f"{reg} relative improvement", f"{accuracy.relative_improvement:+z.2f} %",
                 signed_percent(c.relative_improvement), runs,
                 _joined(other, gamma)),
            ]  # fmt: skip
    for k in summary.compression:
        rate = TABLE3.get((k.dataset, k.model)) if k.width == 1 else None
        if rate:
            mode = "" if k.ours is None or k.ours.setting.mode == "ours" else method_of(k.ours.setting)
            other = _joined(_not_the_papers(k), mode)
            rows.append((k.network, "L1 compression", _rate(rate.compression), _times(k.ours), NONE, other))
    columns = ("network", "what", "paper", "here", "n", "other than its recipe")
    return TextTable("Beside the paper", columns, tuple(rows))


def _not_the_papers(of: Setting | Compared | Compression) -> str:
    """What is not as in the paper's recipe (§3)."""
    paper = TrialConfig(dataset=of.dataset, model=of.model).to_dict()
    return fields_text({name: value for name, value in of.recipe.items() if value != paper[name]})


def _joined(*texts: str) -> str:
    return ", ".join(filter(None, texts))
