"""What a person sees while a sweep runs: done / running / failed, time left, the latest results, nodes that go."""

import time
from collections import Counter
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from tune.events import NodeJoined, NodeLeft, NodeUnfit, Pulse, RunEvent, WorkerLost
from tune.job import Outcome
from tune.terminal import Terminal
from tune.words import counted, duration_text

__all__ = ["SweepProgress"]

_LINE_EVERY = 5.0  # seconds, where the output is no terminal
_BAR_WIDTH = 20


class SweepProgress:
    """Shows a sweep's progress on a console; a context manager and an observer of `tune.recorder.Recorder`.

    Args:
        total: trials of the sweep.
        ended_before: how many of them had ended before.
        at_once: how many are under way at once, at most.
        console: where; stderr by default, so that stdout stays for results.
        at_most: whether ``total`` is only known not to be exceeded.
    """

    def __init__(
        self, total: int, ended_before: int, at_once: int, console: Console | None = None, *, at_most: bool = False
    ) -> None:
        self.console = console or Terminal(stderr=True, highlight=False)
        self.statuses: Counter[str] = Counter()
        self._total, self._ended_before, self._at_once, self._at_most = total, ended_before, at_once, at_most
        self._running: int | None = None  # told by a cluster's pulse
        self._timed_from = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("trials"),
            BarColumn(_BAR_WIDTH),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            # The note takes what the others leave, and alone is cut where the terminal is narrow.
            TextColumn(
                "{task.fields[note]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
            ),
            console=self.console,
            expand=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=ended_before, note="starting")

    def __enter__(self) -> "SweepProgress":
        self._bar.start()
        if not self.console.is_terminal:  # the first trial may take minutes, and until it ends nothing else is said
            self.console.print(self._opening(), markup=False, soft_wrap=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def ended(self, outcome: Outcome) -> None:
        """A trial ended."""
        row = outcome.row
        self.statuses[row["status"]] += 1
        if self.statuses.total() == self._at_once:
            self._timed_from = time.monotonic()
        done = self._ended_before + self.statuses.total()
        self._bar.update(self._task, completed=done, note=f"{self._note()}  last: {_result(row)}")
        now = time.monotonic()
        if not self.console.is_terminal and (now - self._last_line >= _LINE_EVERY or done == self._total):
            self._last_line = now
            text = f"trials {done}/{self._total}, {self._note()}, last: {_result(row)}"
            self.console.print(text, markup=False, soft_wrap=True)

    def noticed(self, event: RunEvent) -> None:
        """Say what a person would want to know; a pulse only renews the number of running trials."""
        if isinstance(event, Pulse):
            self._running = event.running
        elif (text := _in_words(event)) is not None:
            self.console.print(text, markup=False, soft_wrap=True)

    def _opening(self) -> str:
        left = self._total - self._ended_before
        before = f", {self._ended_before} ended before" if self._ended_before else ""
        at_once = f", {min(left, self._at_once)} at once" if left else ""
        return ("at most " if self._at_most else "") + counted(self._total, "trial") + before + at_once

    def _note(self) -> str:
        ends = ", ".join(f"{n} {status}" for status, n in self.statuses.items() if status != "finished")
        done = self.statuses.total()
        left = self._total - self._ended_before - done
        # The first trials waited for the workers to start: they say nothing about the rest.
        timed = done - self._at_once
        seconds = (time.monotonic() - self._timed_from) / timed * left if timed > 0 else None
        about = "at most" if self._at_most else "about"
        time_left = "" if seconds is None else f", {about} {duration_text(seconds)} left"
        running = min(left, self._at_once if self._running is None else self._running)
        return f"{running} running" + (f", {ends}" if ends else "") + time_left


def _in_words(event: RunEvent) -> str | None:
    match event:
        case NodeJoined():
            return f"node {event.node} joined: {counted(event.nodes, 'node')}"
        case NodeLeft():
            return f"node {event.node} left: {counted(event.nodes, 'node')}; its trials go on elsewhere"
        case NodeUnfit():
            return f"node {event.node} cannot serve this sweep: {event.problem}"
        case WorkerLost():
            return f"the worker of {event.trials} was lost; what it had is tried again"
        case _:  # that time is over is said where the run ends
            return None


def _result(row: dict[str, Any]) -> str:
    name = f"{row['model']} {row['regularizer']} {row['mode']} λ={row['lam']:g} seed {row['seed']}"
    if row["status"] == "failed":
        return f"{name}: failed: {row['error']}"
    accuracy = "" if row["test_accuracy"] is None else f" {100 * row['test_accuracy']:.1f} %"
    return f"{name}:{accuracy}" + ("" if row["status"] == "finished" else f" {row['status']}")
