"""The paper's figures as data: what is drawn, independent of the library that draws it."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tune.curves import Curve
from tune.summary import REPORTED, Setting, Summary
from tune.tables import accuracy_of, lam_of, method_of
from tune.words import float_text

__all__ = ["COLORS", "Figure", "Series", "figures"]

# Okabe and Ito's palette: distinct for the colour-blind, in print and on both backgrounds.
COLORS = {"none": "#8c8c8c", "baseline": "#d55e00", "ours": "#0072b2", "ours_orig": "#009e73"}
_MAX_POINTS = 2_000  # of a figure's series; more are thinned out evenly
_MOST_PERCENT = 103.0  # an interval may reach beyond, no accuracy can
_TICK_GAP = 0.1  # of an axis, and of it for each character: labels that are nearer to each other overlap
_CHARACTER = 0.022
_MAX_LINES = 8  # of one figure; with more settings they become one cloud of points a mode


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One entry of the legend.

    Attributes:
        name: in the legend.
        mode: decides colour and marker.
        variant: counts the series of a mode: decides the dash.
        x, y: the points; None leaves a gap.
        error: half-widths of y; None where there are none.
        hover: one text a point: what is behind it.
        joined: whether a line joins the points.
    """

    name: str
    mode: str
    variant: int = 0
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    error: tuple[float, ...] | None = None
    hover: tuple[str, ...] = ()
    joined: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A figure with its axes.

    Attributes:
        name: for files: letters, digits, dashes.
        title, caption: for people.
        x_title, y_title: with units.
        x_log, y_log: whether the axis is logarithmic.
        x_whole: whether x counts something, as epochs: there is nothing between two of its whole numbers.
        x_ticks: what a printed axis is to be labelled at; empty for what its library thinks of.
        y_range: what is shown of y at first; None for all of it.
        series: at least one.
        levels: horizontal lines: name, value, half-width of its interval.
    """

    name: str
    title: str
    caption: str
    x_title: str
    y_title: str
    x_log: bool = False
    x_whole: bool = False
    x_ticks: tuple[float, ...] = ()
    y_log: bool = False
    y_range: tuple[float, float] | None = None
    series: tuple[Series, ...]
    levels: tuple[tuple[str, float, float], ...] = ()


def figures(summary: Summary, curves: Sequence[Curve]) -> list[Figure]:
    """All figures that the data can fill, in the order of a reader's questions."""
    groups: dict[str, list[Setting]] = {}
    for setting in summary.settings:
        if setting.accuracy_mean is not None:
            groups.setdefault(repr(setting.recipe), []).append(setting)
    found: list[Figure] = []
    for number, group in enumerate(groups.values()):
        for regularizer in REPORTED[1:]:
            found += _over_lam(group, regularizer, number)
        found += _over_sparsity(group, number)
    found += _tolerance(summary)
    of: dict[str, list[Curve]] = {}
    for curve in curves:
        if curve.setting.mode != "none":
            of.setdefault(repr((curve.setting.recipe, curve.setting.regularizer)), []).append(curve)
    for number, shown in enumerate(sorted(of.values(), key=lambda shown: REPORTED.index(shown[0].setting.regularizer))):
        found += _over_epochs(shown, number)
    return found


def _over_lam(group: Sequence[Setting], regularizer: str, number: int) -> Iterator[Figure]:
    settings = [s for s in group if s.regularizer == regularizer and s.mode != "none" and s.lam > 0]
    if not settings:
        return
    where = f"{settings[0].network}, {regularizer.upper()}"
    series = tuple(_lines(settings, lambda s: s.lam))
    levels = tuple(
        ("no L1/L2", 100 * s.accuracy_mean, 100 * (s.accuracy_ci95 or 0.0))
        for s in group
        if (s.mode == "none" or s.lam == 0) and s.accuracy_mean is not None  # a logarithmic axis has no 0
    )[:1]
    yield Figure(
        name=f"accuracy-over-lam-{_slug(where)}-{number}",
        title=f"Accuracy over λ: {where}",
        caption="Mean test accuracy with 95 % t intervals over seeds (the paper's Figures 1, 4 and 6).",
        x_title="λ",
        y_title="test accuracy (%)",
        x_log=True,
        x_ticks=_apart(sorted({s.lam for s in settings})),
        y_range=_from_0(series, levels),
        series=series,
        levels=levels,
    )


def _over_sparsity(group: Sequence[Setting], number: int) -> Iterator[Figure]:
    settings = [s for s in group if s.regularizer == "l1" and s.mode != "none" and s.sparsity_mean is not None]
    if settings and any(s.sparsity_mean for s in settings):
        where = settings[0].network
        series = (*_lines(settings, lambda s: 100 * (s.sparsity_mean or 0.0)), _pareto_front(settings))
        yield Figure(
            name=f"accuracy-over-sparsity-{_slug(where)}-{number}",
            title=f"Accuracy over sparsity: {where}, L1",
            caption="Sparsity is the share of parameters that are exactly 0 (the paper's Figure 5).",
            x_title="sparsity (%)",
            y_title="test accuracy (%)",
            y_range=_from_0(series),
            series=series,
        )


def _from_0(series: Sequence[Series], levels: Sequence[tuple[str, float, float]] = ()) -> tuple[float, float]:
    """The range of an axis of accuracies in percent."""
    tops = [y + half for _, y, half in levels]
    for each in series:
        halves = each.error or (0.0,) * len(each.y)
        tops += [(y or 0.0) + half for y, half in zip(each.y, halves, strict=True)]
    return 0.0, min(_MOST_PERCENT, 1.1 * max(tops)) or _MOST_PERCENT


def _apart(values: Sequence[float]) -> tuple[float, ...]:
    """Those of ascending values that have room for a label on a logarithmic axis."""
    widest = max(len(f"{value:g}") for value in values)
    gap = (values[-1] / values[0]) ** max(_TICK_GAP, _CHARACTER * widest)
    kept: list[float] = []
    for value in values:
        if not kept or value >= gap * kept[-1]:
            kept.append(value)
    return tuple(kept)


def _pareto_front(settings: Sequence[Setting]) -> Series:
    """The settings that no other beats in both accuracy and sparsity."""
    best, front = -1.0, []
    for s in sorted(settings, key=lambda s: (-(s.sparsity_mean or 0.0), -(s.accuracy_mean or 0.0))):
        if (s.accuracy_mean or 0.0) > best:
            best = s.accuracy_mean or 0.0
            front.append(s)
    front.reverse()
    return Series(
        name="Pareto front",
        mode="none",
        x=tuple(100 * (s.sparsity_mean or 0.0) for s in front),
        y=tuple(100 * (s.accuracy_mean or 0.0) for s in front),
        hover=tuple(_hover(s) for s in front),
    )


def _lines(settings: Sequence[Setting], x_of: Callable[[Setting], float]) -> Iterator[Series]:
    """A line for each method; where a search chose more than λ, or with very many methods, a cloud for each mode."""
    methods: dict[tuple[str, ...], list[Setting]] = {}
    for setting in settings:
        methods.setdefault(
            (setting.mode, str(setting.mu), str(setting.gamma), str(setting.gamma_threshold)), []
        ).append(setting)
    joined = len(methods) <= _MAX_LINES and not any(s.tuned for s in settings)
    if not joined:
        methods = {(mode,): [s for s in settings if s.mode == mode] for mode in COLORS if mode != "none"}
    variants: dict[str, int] = {}
    for group in methods.values():
        if not group:
            continue
        points = sorted(group, key=x_of)
        points = points[:: -(-len(points) // _MAX_POINTS)]
        first = points[0]
        variant = variants[first.mode] = variants.get(first.mode, -1) + 1
        yield Series(
            name=method_of(first) if joined else first.mode,
            mode=first.mode,
            variant=variant,
            x=tuple(x_of(s) for s in points),
            y=tuple(None if s.accuracy_mean is None else 100 * s.accuracy_mean for s in points),
            error=tuple(100 * (s.accuracy_ci95 or 0.0) for s in points),
            hover=tuple(_hover(s) for s in points),
            joined=joined,
        )


def _tolerance(summary: Summary) -> Iterator[Figure]:
    """Figure 7, where networks of several depths were swept alike."""
    alike: dict[tuple[str, ...], dict[tuple[str, str], list[tuple[int, float, str]]]] = {}
    titles: dict[tuple[str, ...], str] = {}
    for level in summary.tolerance:
        depth = re.search(r"\d+$", level.model)
        if depth is None or not level.tolerance_lam:  # a logarithmic axis has no 0
            continue
        recipe = {name: value for name, value in level.recipe.items() if name != "model"}
        name = re.sub(r"\d+$", "", level.model)
        family: tuple[str, ...] = (name, level.regularizer, repr(recipe))
        titles.setdefault(family, f"{name}{level.network.removeprefix(level.model)}, {level.regularizer.upper()}")
        line = alike.setdefault(family, {}).setdefault((level.mode, method_of(level)), [])
        line.append(
            (int(depth[0]), level.tolerance_lam, f"{level.model}: learns up to λ = {float_text(level.tolerance_lam)}")
        )
    for number, (family, lines) in enumerate(alike.items()):
        if max(len(points) for points in lines.values()) < 2:
            continue
        variants: dict[str, int] = {}
        series = []
        for (mode, method), points in lines.items():
            points.sort()
            variant = variants[mode] = variants.get(mode, -1) + 1
            series.append(
                Series(
                    name=method,
                    mode=mode,
                    variant=variant,
                    x=tuple(float(p[0]) for p in points),
                    y=tuple(p[1] for p in points),
                    hover=tuple(p[2] for p in points),
                )
            )
        yield Figure(
            name=f"tolerance-{number}",
            title=f"Tolerance level over depth: {titles[family]}",
            caption="The largest λ tried at which every seed learns (the paper's Figure 7).",
            x_title="layers",
            x_whole=True,
            y_title="λ",
            x_ticks=tuple(sorted({depth for line in series for depth in line.x if depth is not None})),
            y_log=True,
            series=tuple(series),
        )


def _over_epochs(curves: Sequence[Curve], number: int) -> Iterator[Figure]:
    setting = curves[0].setting
    where = f"{setting.network}, {setting.regularizer.upper()}"
    fails = any(curve.setting.mode == "baseline" and curve.setting.stopped for curve in curves)
    shown = "each mode at its best λ" + (", and where the baseline collapses" if fails else "")
    for name, title, figure, log in (
        ("train_loss", "training loss, without the penalty", "Figure 2a", True),
        ("grad_abs_mean", "mean |∇L|", "Figure 2c", True),
        ("weight_abs_mean", "mean |w|", "Figures 2d and 8", True),
        ("pi", "coherence rate π", "Figure 3", False),
    ):
        variants: dict[str, int] = {}
        series = []
        for curve in curves:
            mode = curve.setting.mode
            variant = variants[mode] = variants.get(mode, -1) + 1
            series.append(
                Series(
                    name=f"{method_of(curve.setting)}, λ = {lam_of(curve.setting)}",
                    mode=mode,
                    variant=variant,
                    x=tuple(float(epoch) for epoch in curve.epoch),
                    y=getattr(curve, name),
                )
            )
        yield Figure(
            name=f"{name.replace('_', '-')}-{_slug(where)}-{number}",
            title=f"{title[0].upper()}{title[1:]}: {where}",
            caption=f"Mean over the seeds that reached the epoch; {shown} (the paper's {figure}).",
            x_title="epoch",
            x_whole=True,
            y_title=title,
            y_log=log,
            series=tuple(series),
        )


def _hover(s: Setting) -> str:
    parts = [
        f"{method_of(s)}, λ = {lam_of(s)}",
        f"accuracy {accuracy_of(s)}",
    ]
    if s.sparsity_mean is not None:
        parts.append(f"sparsity {s.sparsity_mean:.3f}")
    parts += [
        f"seed {seed}: {100 * accuracy:.2f} %" for seed, accuracy in list(zip(s.seeds, s.accuracies, strict=True))[:6]
    ]
    return "\n".join(parts)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
