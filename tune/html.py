"""The report as one self-contained HTML page: nothing is fetched when it is opened."""

import json
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from tune.curves import Curve
from tune.figures import Figure, figures
from tune.plotly_figures import plotly_figure, plotly_library
from tune.report import AGAIN
from tune.summary import Setting, Summary
from tune.tables import TextTable, result_tables, setting_cells, settings_table
from tune.verdict import caveats, commands, headline, sentences

__all__ = ["render_html"]

_MAX_ROWS = 400  # of a table in the page; CSV and JSON have all


def render_html(
    summary: Summary,
    curves: Sequence[Curve],
    *,
    more_figures: Sequence[Figure],
    more_tables: Sequence[TextTable],
    title: str,
    progress: str,
    manifest: dict[str, Any],
    facts: dict[str, str],
    version: str | None = None,
) -> str:
    """The page.

    Args:
        summary: what to say.
        curves: of the settings whose curves are to be drawn.
        more_figures, more_tables: of a search.
        title: name of the experiment; shown as text, whatever it contains.
        progress: one line: how many trials ended, of how many.
        manifest: of the store: the spec, and what `tune.provenance` noted.
        facts: further lines of the provenance section.
        version: if the page is served and may change: a token of this state, for which the page asks.
    """
    environment = Environment(
        loader=PackageLoader("tune"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = [*more_figures, *figures(summary, curves)]
    settings = settings_table(summary.settings)
    return environment.get_template("report.html").render(
        title=title,
        progress=progress,
        headline=headline(summary),
        verdict=list(sentences(summary)),
        caveats=list(caveats(summary)),
        again="\n".join(commands(summary)),
        again_title=AGAIN,
        figures=drawn,
        figure_json=_script_json([plotly_figure(figure) for figure in drawn]),
        plotly=plotly_library(),
        tables=[_shortened(table) for table in (*result_tables(summary), *more_tables)],
        settings_columns=settings.columns,
        settings_title=settings.title,
        settings=[_setting(setting) for setting in summary.settings[:_MAX_ROWS]],
        settings_left_out=max(0, len(summary.settings) - _MAX_ROWS),
        runs=manifest.get("runs", []),
        spec=json.dumps(manifest.get("spec", {}), indent=2, ensure_ascii=False),
        facts=facts,
        version=version,
    )


def _setting(setting: Setting) -> dict[str, Any]:
    trials = zip(setting.measured_ids, setting.seeds, setting.accuracies, strict=True)
    return {
        "cells": setting_cells(setting),
        "trials": [(trial_id, seed, f"{100 * accuracy:.2f} %") for trial_id, seed, accuracy in trials],
    }


def _shortened(table: TextTable) -> dict[str, Any]:
    return {
        "title": table.title,
        "columns": table.columns,
        "rows": table.rows[:_MAX_ROWS],
        "left_out": max(0, len(table.rows) - _MAX_ROWS),
    }


def _script_json(value: object) -> str:
    """JSON that cannot end the script element that it stands in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
