"""Figures as Plotly draws them in the page."""

import base64
import functools
import gzip
import html
from typing import Any

from plotly.offline import get_plotlyjs

from tune.figures import COLORS, Figure, Series

__all__ = ["plotly_figure", "plotly_library"]

_MARKERS = {"none": "x", "baseline": "square", "ours": "circle", "ours_orig": "diamond"}
_WHOLE_TICKS = 8  # so many steps of one have room for a label each
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


@functools.cache
def plotly_library() -> str:
    """Plotly's JavaScript, compressed with gzip, in base64: a third of its size, unpacked by the browser itself."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


def plotly_figure(figure: Figure) -> dict[str, Any]:
    """Data and layout for ``Plotly.newPlot``; the page adds the colours of its theme."""
    across = {"xref": "paper", "x0": 0, "x1": 1}
    gray = COLORS["none"]
    lines = [
        across | {"type": "line", "y0": y, "y1": y, "line": {"dash": "dot", "width": 1.5, "color": gray}}
        for _, y, _ in figure.levels
    ]
    bands = [
        across
        | {"type": "rect", "y0": y - half, "y1": y + half, "line": {"width": 0}, "fillcolor": gray, "opacity": 0.15}
        for _, y, half in figure.levels
        if half
    ]
    notes = [
        {"xref": "paper", "x": 1, "xanchor": "right", "y": y, "yanchor": "bottom", "text": name, "showarrow": False}
        for name, y, _ in figure.levels
    ]
    return {
        "data": [_trace(series) for series in figure.series],
        "layout": {
            "xaxis": _axis(figure.x_title, figure.x_log) | ({"dtick": 1} if figure.x_whole and _few(figure) else {}),
            "yaxis": _axis(figure.y_title, figure.y_log) | ({"range": list(figure.y_range)} if figure.y_range else {}),
            "shapes": lines + bands,
            "annotations": notes,
            "hovermode": "closest",
            "margin": {"l": 64, "r": 16, "t": 8, "b": 48},
            "legend": {"orientation": "h", "y": -0.22, "yanchor": "top"},
            "height": 420,
        },
    }


def _few(figure: Figure) -> bool:
    """Whether x spans so little that Plotly would put ticks between whole numbers."""
    x = [value for series in figure.series for value in series.x]
    return max(x, default=0) - min(x, default=0) <= _WHOLE_TICKS


def _axis(title: str, log: bool) -> dict[str, Any]:
    return {
        "title": {"text": title, "standoff": 8},
        "type": "log" if log else "linear",
        "exponentformat": "power",
        "automargin": True,
    }


def _trace(series: Series) -> dict[str, Any]:
    color = COLORS[series.mode]
    many = len(series.x) > 24
    trace: dict[str, Any] = {
        "type": "scatter",
        "name": _escaped(series.name),
        "mode": "markers" if not series.joined else "lines" if many else "lines+markers",
        "x": list(series.x),
        "y": list(series.y),
        "line": {"color": color, "dash": _DASHES[series.variant % len(_DASHES)], "width": 2},
        "marker": {"color": color, "symbol": _MARKERS[series.mode], "size": 6 if many else 8},
        "hovertemplate": "%{text}<extra></extra>" if series.hover else "%{x}, %{y:.4g}<extra>%{fullData.name}</extra>",
    }
    if series.hover:
        trace["text"] = [_escaped(text).replace("\n", "<br>") for text in series.hover]
    if series.error is not None and any(series.error):
        trace["error_y"] = {"type": "data", "array": list(series.error), "thickness": 1.2, "width": 3, "color": color}
    return trace


def _escaped(text: str) -> str:
    """Plotly reads a few tags in its texts."""
    return html.escape(text, quote=False)
