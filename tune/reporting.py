"""From a store to a report in any format."""

import functools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tune.aggregate import summarize
from tune.curves import Curve, chosen_settings, read_curves
from tune.figures import figures
from tune.folder import DamagedStoreError
from tune.formats import Format
from tune.html import render_html
from tune.report import render
from tune.search_report import history_figures, importance_table, stored_definition, stored_search, tuned_fields
from tune.store import Store
from tune.summary import Searched
from tune.words import duration_text, short_digest

__all__ = ["Report"]


class Report:
    """What is in a store at this moment.

    Args:
        store: the sweep's output.
        fallback_title: if the store does not name its experiment.

    Attributes:
        damaged: one line for each file that could not be read so far; epochs are read for the page and the figures.
    """

    def __init__(self, store: Store, *, fallback_title: str) -> None:
        self._store = store
        trials = store.read_trials()
        self.damaged = trials.damaged
        self._table = trials.table
        self._manifest: dict[str, Any] = {}
        self._search: dict[str, Any] | None = None  # definition of the search that filled the store
        try:
            self._manifest = store.read_manifest() or {}
        except DamagedStoreError as error:
            self.damaged += (str(error),)
        try:
            self._search = stored_definition(store)
        except DamagedStoreError as error:
            self.damaged += (str(error),)
        self._summary = summarize(trials.table, None if self._search is None else self._what_was_asked(self._search))
        known = set(self._manifest.get("trials", [])) | set(trials.table["trial_id"].to_pylist())
        planned = max(len(known), self._manifest.get("planned", 0))
        # A search may prune some, or suggest a setting twice.
        most = "at most " if self._search is not None and len(trials.table) < planned else ""
        self._progress = f"{len(trials.table)} of {most}{planned} trials ended"
        self._title = str(self._manifest.get("experiment", fallback_title))

    def _what_was_asked(self, definition: dict[str, Any]) -> Searched:
        try:
            return stored_search(self._store, definition)
        except DamagedStoreError as error:
            self.damaged += (str(error),)
            objectives = tuple(definition["objectives"])
            return Searched(tuned=tuned_fields(definition), objectives=objectives, asked={})

    def render(self, form: Format, *, width: int = 120, version: str | None = None) -> str:
        """The report as text of the format; see `tune.html.render_html` for ``version``."""
        if form != "html":
            return render(self._summary, form, title=self._title, progress=self._progress, width=width)
        searched = self._searched()
        importance = None if searched is None else importance_table(*searched)
        return render_html(
            self._summary,
            self._curves,
            more_figures=[] if searched is None else history_figures(*searched),
            more_tables=[] if importance is None else [importance],
            title=self._title,
            progress=self._progress,
            manifest=self._manifest,
            facts=self._facts(),
            version=version,
        )

    def write_figures(self, folder: Path) -> list[Path]:
        """Every figure as SVG, PNG and PDF; returns the paths."""
        from tune.static_figures import write_figures

        searched = self._searched()
        history = [] if searched is None else history_figures(*searched)
        return write_figures([*history, *figures(self._summary, self._curves)], folder)

    def _searched(self) -> tuple[list[dict[str, Any]], dict[str, Any]] | None:
        """The rows and the definition of the search that filled the store; None if it was none."""
        return None if self._search is None else (self._table.to_pylist(), self._search)

    @functools.cached_property
    def _curves(self) -> tuple[Curve, ...]:
        found = read_curves(self._store, chosen_settings(self._summary))
        self.damaged += found.damaged
        return found.curves

    def _facts(self) -> dict[str, str]:
        def distinct(column: str) -> str:
            return ", ".join(sorted({str(v) for v in self._table[column].unique().to_pylist() if v is not None})) or "–"

        # Of a module that was changed between runs, each version in turn.
        digests = {name: [found] for name, found in self._manifest.get("data", {}).items()}
        digests |= self._manifest.get("networks", {})
        seconds = sum(value for value in self._table["seconds"].to_pylist() if value is not None)
        ends = [value for value in self._table["finished_at"].to_pylist() if value is not None]
        return {
            "store": self._store.location,
            "trained on": distinct("device"),
            "gcsr": distinct("gcsr_version"),
            "torch": distinct("torch_version"),
            **{name: "sha256 " + ", then ".join(map(short_digest, found)) for name, found in digests.items()},
            "training time": f"{duration_text(seconds)} in all trials",
            "trials ended": f"{min(ends):%Y-%m-%d %H:%M} to {max(ends):%Y-%m-%d %H:%M} UTC" if ends else "–",
            "report made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        }
