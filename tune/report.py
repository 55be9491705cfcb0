"""A store's report as text, Markdown, LaTeX, CSV or JSON: the same numbers in every format."""

import csv
import io
import json
from typing import Any, Literal

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from tune.flat import flat_comparison, flat_compression, flat_found, flat_setting, flat_tolerance, setting_columns
from tune.summary import Summary
from tune.tables import TextTable, text_tables
from tune.verdict import caveats, commands, headline, sentences

__all__ = ["AGAIN", "render"]

AGAIN = "Train the best again (--save FILE keeps the network)"
_WORD = 12  # characters that are kept together where a line is narrow


def render(
    summary: Summary,
    form: Literal["text", "markdown", "json", "csv", "latex"],
    *,
    title: str,
    progress: str,
    width: int = 120,
) -> str:
    """The report.

    Args:
        summary: what to say.
        form: JSON has every number of the summary, CSV one row a setting. (`tune.html` makes the remaining one of
            `tune.formats.FORMATS`.)
        title: name of the experiment.
        progress: one line: how many trials ended, of how many.
        width: columns of the terminal, for text.
    """
    match form:
        case "json":
            return json.dumps(to_dict(summary) | {"experiment": title, "progress": progress}, indent=2) + "\n"
        case "csv":
            return _csv(summary)
        case "markdown":
            return _markdown(summary, title, progress)
        case "latex":
            return "\n".join(_latex(table) for table in text_tables(summary))
        case "text":
            return _text(summary, title, progress, width)


def to_dict(summary: Summary) -> dict[str, Any]:
    """The summary as JSON values: keys ``settings``, ``comparisons``, ``tolerance``, ``compression``, …"""
    return {
        "settings": [flat_setting(each) for each in summary.settings],
        "comparisons": [flat_comparison(each) for each in summary.comparisons],
        "tolerance": [flat_tolerance(each) for each in summary.tolerance],
        "compression": [flat_compression(each) for each in summary.compression],
        "best_found": [flat_found(each) for each in summary.found],
        "failures": [{"trial_id": trial_id, "error": error} for trial_id, error in summary.failures],
        "headline": headline(summary),
        "verdict": list(sentences(summary)),
        "caveats": list(caveats(summary)),
    }


def _csv(summary: Summary) -> str:
    rows = [flat_setting(each) for each in summary.settings]
    names = list(rows[0]) if rows else setting_columns()
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: " ".join(map(str, v)) if isinstance(v, tuple) else v for k, v in row.items()})
    return buffer.getvalue()


def _text(summary: Summary, title: str, progress: str, width: int) -> str:
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, no_color=True, highlight=False, emoji=False)
    console.print(Text(f"{title}: {progress}\n\n{headline(summary)}"))
    for heading, lines in (("Verdict", sentences(summary)), ("Caveats", caveats(summary))):
        listed = list(lines)
        if listed:
            console.print(Text(f"\n{heading}"))
            for line in listed:
                grid = RichTable.grid(padding=(0, 1))
                grid.add_row("•", Text(line))
                console.print(grid)
    for table in text_tables(summary):
        console.print()
        widths, gap = _widths(table, width)
        shown = RichTable(
            title=Text(table.title), title_justify="left", box=None, pad_edge=False, padding=(0, gap, 0, 0)
        )
        for column, wide in zip(table.columns, widths, strict=True):
            shown.add_column(Text(column), overflow="fold", width=wide)
        for row in table.rows:
            shown.add_row(*(Text(cell) for cell in row))
        console.print(shown)
    again = list(commands(summary))
    if again:
        console.print(Text(f"\n{AGAIN}"))
        for line in again:
            console.print(Text(line), soft_wrap=True)  # a command is one line, to be copied
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _widths(table: TextTable, width: int) -> tuple[list[int | None], int]:
    """Widths of columns that break no number in two, and the gap between; None for rich's own, if there is no room.

    Where it is narrow the gap is smaller, and where it is narrower still titles are broken.
    """
    columns = list(zip(table.columns, *table.rows, strict=True))
    wide = [max(1, *(len(cell) for cell in column)) for column in columns]
    for gap, title in ((2, 0), (1, 0), (1, 1)):
        words = [[word for cell in column[title:] for word in cell.split()] for column in columns]
        least = [min(_WORD, max(map(len, of_column), default=1)) for of_column in words]
        room = width - gap * (len(wide) - 1)
        if sum(least) <= room:
            while sum(wide) > room:  # takes from the widest that can give
                most = max((n for n in range(len(wide)) if wide[n] > least[n]), key=wide.__getitem__)
                wide[most] -= 1
            return [*wide], gap
    return [None] * len(wide), 2


def _markdown(summary: Summary, title: str, progress: str) -> str:
    lines = [f"# {_cell(title)}", "", progress, "", f"**{_cell(headline(summary))}**", ""]
    for heading, each in (("Verdict", sentences(summary)), ("Caveats", caveats(summary))):
        listed = list(each)
        if listed:
            lines += [f"## {heading}", "", *(f"- {_cell(line)}" for line in listed), ""]
    for table in text_tables(summary):
        lines += [f"## {table.title}", "", *_markdown_table(table), ""]
    again = list(commands(summary))
    if again:
        lines += [f"## {AGAIN}", "", "```sh", *again, "```", ""]
    return "\n".join(lines)


def _markdown_table(table: TextTable) -> list[str]:
    rows = [table.columns, tuple("---" for _ in table.columns), *table.rows]
    return ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "×": r"$\times$",
        "λ": r"$\lambda$",
        "π": r"$\pi$",
        "γ": r"$\gamma$",
        "μ": r"$\mu$",
        "α": r"$\alpha$",
        "–": "--",
        "…": r"\dots{}",
        "≥": r"$\geq$",
        "≤": r"$\leq$",
        "∇": r"$\nabla$",
        "→": r"$\rightarrow$",
        "|": r"\textbar{}",
        "<": "$<$",
        ">": "$>$",
        "−": "$-$",
    }
)


def _latex(table: TextTable) -> str:
    """A table for LaTeX with the package booktabs."""

    def row(cells: tuple[str, ...]) -> str:
        return " & ".join(cell.translate(_LATEX) for cell in cells) + r" \\"

    lines = [
        r"\begin{table}",
        r"\centering",
        f"\\caption{{{table.title.translate(_LATEX)}}}",
        f"\\begin{{tabular}}{{{'l' * len(table.columns)}}}",
    ]
    lines += [r"\toprule", row(table.columns), r"\midrule", *map(row, table.rows), r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}", r"\end{table}", ""])
