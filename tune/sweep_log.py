"""The log of a sweep: one JSON object a line, ``DIR/log.jsonl``."""

import json
import time
from dataclasses import asdict
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, BinaryIO, Self

from tune.events import Pulse, RunEvent
from tune.job import Outcome
from tune.store import Store
from tune.terminal import complain

__all__ = ["LOG", "SweepLog"]

LOG = "log.jsonl"
_COLUMNS = ("trial_id", "status", "error", "model", "regularizer", "mode", "lam", "mu", "gamma", "seed")
_RESULTS = (
    "test_accuracy",
    "val_accuracy",
    "pi",
    "imposed_fraction",
    "sparsity",
    "train_loss",
    "seconds",
    "epochs_run",
)
_LONGEST_LINE = 1 << 16  # bytes
_REMOTE_SECONDS = 10.0  # at least, between two writes of a remote log
_REMOTE_SHARE = 20  # … and this many times as long as the last one took: objects can only be written whole


class SweepLog:
    """Appends what happens; a context manager and an observer of `tune.recorder.Recorder`.

    Every run of a store adds to the same log. On a local disk each line is there at once; on an object store, which
    cannot append, the file is written anew every now and then (also while nothing happens), and at the end. A log that
    cannot be written is said once and ends nothing: the Parquet store is the truth.

    Args:
        store: whose log it is.
        started: fields of the first line of this run.
    """

    def __init__(self, store: Store, started: dict[str, Any]) -> None:
        self._store, self._started = store, started
        self._file: BinaryIO | None = None
        self._lines = bytearray()
        self._next, self._unwritten, self._broken = 0.0, False, False
        self._statuses: dict[str, int] = {}

    def __enter__(self) -> Self:
        try:
            if self._store.is_local:
                self._file = open(self._store.path(LOG), "ab+")
                self._end_last_line()
            else:
                self._lines += self._store.read_bytes(LOG) or b""
        except OSError as error:
            self._give_up(error)
        self._write("started", self._started)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        how = "done" if kind is None else "interrupted" if issubclass(kind, KeyboardInterrupt) else "stopped"
        self._next = 0.0
        self._write("ended", {"how": how, "statuses": self._statuses})
        if self._file is not None:
            self._file.close()

    def ended(self, outcome: Outcome) -> None:
        """A trial ended: which, how, and its results."""
        row = outcome.row
        self._statuses[row["status"]] = self._statuses.get(row["status"], 0) + 1
        self._write("trial_ended", {name: row[name] for name in (*_COLUMNS, *_RESULTS) if row[name] is not None})

    def noticed(self, event: RunEvent) -> None:
        """Anything but a pulse is a line; at a pulse, lines that a remote log still lacks are written."""
        if not isinstance(event, Pulse):
            self._write(event.name, asdict(event))
        elif self._unwritten:
            self._write_remote()

    def _write(self, event: str, fields: dict[str, Any]) -> None:
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event} | fields
        data = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        if self._broken:
            return
        try:
            if self._file is not None:
                self._file.write(data)
                self._file.flush()
        except OSError as error:
            self._give_up(error)
        if not self._store.is_local:
            self._lines += data
            self._unwritten = True
            self._write_remote()

    def _write_remote(self) -> None:
        if self._broken or time.monotonic() < self._next:
            return
        began = time.monotonic()
        try:
            self._store.write_bytes(LOG, bytes(self._lines))
        except OSError as error:
            self._give_up(error)
        took = time.monotonic() - began
        self._next = began + max(_REMOTE_SECONDS, _REMOTE_SHARE * took)
        self._unwritten = False

    def _end_last_line(self) -> None:
        """A run that was killed may have left half a line: it is dropped."""
        assert self._file is not None
        size = self._file.seek(0, 2)
        self._file.seek(max(0, size - _LONGEST_LINE))
        tail = self._file.read()
        if tail and not tail.endswith(b"\n"):
            self._file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)
        self._file.seek(0, 2)

    def _give_up(self, error: OSError) -> None:
        self._broken = True
        complain(f"gcsr: the log {self._store.path(LOG)} cannot be written: {error.strerror or error}")
