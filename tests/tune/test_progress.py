"""What is said of a sweep while it runs, on a terminal of any width and where there is none."""

import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from tests.tune.conftest import make_row
from tune.events import NodeJoined, NodeLeft, Pulse
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


def test_what_may_end_sooner_is_said_to_take_so_long_at_most(clock):
    written = console(80, terminal=False)
    with SweepProgress(64, 0, 1, written, at_most=True) as shown:
        for _ in range(2):
            clock.now += 6.0
            shown.ended(Outcome(make_row(lam=1e-3), []))
    first, *_, last = written.file.getvalue().splitlines()
    assert first == "at most 64 trials, 1 at once"
    assert ", at most 6 min left, last: " in last


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("tune.progress.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_where_there_is_no_terminal_a_line_every_five_seconds_says_how_far_it_is(clock):
    """The trials that waited for workers to start say nothing about the time that is left."""
    written = console(80, terminal=False)
    shown, lines = SweepProgress(10, 2, 2, written), []
    diverged = make_row(None, status="diverged", mode="ours", lam=0.5, seed=3)
    for seconds, row in (
        (30, make_row(0.875, mode="baseline", lam=1e-3)),
        (1, diverged),  # too soon after the last line
        (20, make_row(status="failed", mode="none", seed=1)),  # the first of those that are timed: five are left
        (6, make_row(0.1, status="collapsed", mode="baseline", lam=1e-2)),
        (0, diverged),
        (0, diverged),
        (1, diverged),
        (1, make_row(1.0, mode="none")),  # the last one is told however soon
    ):
        clock.now += seconds
        shown.ended(Outcome(row, []))
        said = written.file.getvalue()
        lines.append(said.removeprefix("".join(lines)))
    assert lines == [
        "trials 3/10, 2 running, last: mlp6 l2 baseline λ=0.001 seed 0: 87.5 %\n",
        "",
        "trials 5/10, 2 running, 1 diverged, 1 failed, about 2 min left, "
        "last: mlp6 l2 none λ=0 seed 1: failed: ValueError: on purpose\n",
        "trials 6/10, 2 running, 1 diverged, 1 failed, 1 collapsed, about 52 s left, "
        "last: mlp6 l2 baseline λ=0.01 seed 0: 10.0 % collapsed\n",
        *("", "", ""),
        "trials 10/10, 0 running, 4 diverged, 1 failed, 1 collapsed, about 0 s left, "
        "last: mlp6 l2 none λ=0 seed 0: 100.0 %\n",
    ]


@pytest.mark.parametrize(
    ("each", "left"), [(89.4, "89 s"), (90.0, "2 min"), (5340.0, "89 min"), (5400.0, "1.5 h"), (36000.0, "10.0 h")]
)
def test_the_time_that_is_left_is_told_in_a_unit_that_suits_it(clock, each, left):
    written = console(80, terminal=False)
    shown = SweepProgress(3, 0, 1, written)
    for _ in range(2):
        clock.now += each
        shown.ended(Outcome(make_row(), []))
    assert f", about {left} left, " in written.file.getvalue()


def test_a_cluster_knows_how_many_are_running(clock):
    written = console(80, terminal=False)
    shown = SweepProgress(10, 0, 4, written)
    shown.noticed(Pulse(running=3, nodes=1))
    assert written.file.getvalue() == ""
    clock.now += 5
    shown.ended(Outcome(make_row(), []))
    shown.noticed(NodeJoined(node="b", nodes=2))
    first, second = written.file.getvalue().splitlines()
    assert first.startswith("trials 1/10, 3 running, last: ")
    assert second == "node b joined: 2 nodes"


def test_a_node_that_goes_is_told():
    written = console(80, terminal=False)
    SweepProgress(2, 0, 2, written).noticed(NodeLeft(node="a", nodes=1))
    assert written.file.getvalue() == "node a left: 1 node; its trials go on elsewhere\n"
