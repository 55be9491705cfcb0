"""Figures as files for a paper: SVG, PNG and PDF."""

import textwrap
from pathlib import Path
from typing import Any

from tune.figures import COLORS, Figure

__all__ = ["write_figures"]

_MARKERS = {"none": "x", "baseline": "s", "ours": "o", "ours_orig": "D"}
_TITLE = 64  # characters of a line of a title
_DASHES = ("-", "--", ":", "-.")
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "gcsr",
    "pdf.fonttype": 42,
}


def write_figures(figures: list[Figure], folder: Path) -> list[Path]:
    """Write each figure as ``NAME.svg``, ``NAME.png`` (200 dpi) and ``NAME.pdf``; returns the paths."""
    import matplotlib  # only here: it takes a second

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with plt.rc_context(_STYLE):
        for figure in figures:
            canvas, axes = plt.subplots(figsize=(4.8, 3.3), layout="constrained")
            for name, y, half in figure.levels:
                axes.axhline(y, color=COLORS["none"], linestyle=":", label=name)
                if half:
                    axes.axhspan(y - half, y + half, color=COLORS["none"], alpha=0.15, linewidth=0)
            for series in figure.series:
                few = len(series.x) <= 24
                axes.errorbar(
                    series.x,
                    [float("nan") if y is None else y for y in series.y],
                    yerr=series.error if series.error is not None and any(series.error) else None,
                    label=series.name,
                    color=COLORS[series.mode],
                    linestyle=_DASHES[series.variant % len(_DASHES)] if series.joined else "none",
                    marker=_MARKERS[series.mode] if few or not series.joined else None,
                    markersize=4,
                    linewidth=1.4,
                    capsize=2,
                    elinewidth=0.9,
                )
            if figure.x_log:
                axes.set_xscale("log")
            if figure.x_whole:
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if figure.x_ticks:
                axes.set_xticks(figure.x_ticks, [f"{value:g}" for value in figure.x_ticks])
                axes.set_xticks([], minor=True)
            if figure.y_log:
                axes.set_yscale("log")
            if figure.y_range:
                axes.set_ylim(*figure.y_range)
            axes.set(xlabel=figure.x_title, ylabel=figure.y_title)
            axes.set_title(textwrap.fill(figure.title, _TITLE), fontsize=9)
            axes.legend(fontsize=7, framealpha=0.7)
            for kind in ("svg", "png", "pdf"):
                path = folder / f"{figure.name}.{kind}"
                stamp = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
                canvas.savefig(path, dpi=200, metadata=stamp)
                written.append(path)
            plt.close(canvas)
    return written
