"""What is said of a sweep while it runs, on a terminal of any width and where there is none."""

import io
import re

import pytest
from rich.console import Console

from tests.tune.conftest import make_row
from tune.events import NodeLeft
from tune.job import Outcome
from tune.progress import SweepProgress


def console(width, terminal):
    return Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None, highlight=False)


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_the_counter_is_seen_whatever_the_width(width):
    shown = console(width, terminal=True)
    row = make_row(dataset="cifar100", model="alexnet", mode="ours_orig", lam=1.234567e-4)
    with SweepProgress(1077, 533, 16, shown) as progress:
        assert " 533/1077 " in shown.file.getvalue(), "at once"
        progress.ended(Outcome(row, []))
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.file.getvalue()).rstrip().splitlines()[-1]
    assert " 534/1077 " in last
    assert "━" in last
    assert "running" in last
    assert last.endswith("…") == (width < 120)
    assert len(last) <= width


@pytest.mark.parametrize(
    ("total", "before", "said"),
    [
        (77, 3, "77 trials, 3 ended before, 2 at once\n"),
        (1, 0, "1 trial, 1 at once\n"),
        (4, 4, "4 trials, 4 ended before\n"),
    ],
)
def test_without_a_terminal_a_line_says_what_begins(total, before, said):
    written = console(80, terminal=False)
    with SweepProgress(total, before, 2, written):
        assert written.file.getvalue() == said


def test_a_node_that_goes_is_told():
    written = console(80, terminal=False)
    SweepProgress(2, 0, 2, written).noticed(NodeLeft(node="a", nodes=1))
    assert written.file.getvalue() == "node a left: 1 node; its trials go on elsewhere\n"
