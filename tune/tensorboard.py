"""Trials as TensorBoard runs: one event file a trial, with its curves and, for the HParams tab, its config."""

import tempfile
from pathlib import Path
from typing import Any, Self

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import hparams, scalar

from tune.events import RunEvent
from tune.job import Outcome, tensorboard_name
from tune.schema import CONFIG_FIELDS, EPOCHS
from tune.store import Store

__all__ = ["TensorBoardRuns"]

_CURVES = tuple(name for name in EPOCHS.names if name not in ("trial_id", "epoch"))
_FINAL = ("test_accuracy", "sparsity", "pi", "train_loss")


class TensorBoardRuns:
    """Writes ``DIR/tensorboard/RUN/`` when a trial has ended; a context manager and an observer.

    A trial that runs again replaces its file. Works on every store, as the files are whole objects.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def ended(self, outcome: Outcome) -> None:
        """Write the trial's run; one that failed has none."""
        if outcome.row["status"] != "failed":
            self._store.write_bytes(tensorboard_name(outcome.row), event_file(outcome))

    def noticed(self, event: RunEvent) -> None:
        """Nothing: only trials have curves."""


def event_file(outcome: Outcome) -> bytes:
    """The bytes of a TensorBoard event file."""
    row = outcome.row
    end = row["finished_at"].timestamp()
    times = _times(outcome.epochs, end)
    values = {
        name: row[name] if isinstance(row[name], int | float | bool) else str(row[name]) for name in CONFIG_FIELDS
    }
    final = {f"final/{name}": row[name] for name in _FINAL if row[name] is not None}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events"
        writer = RecordWriter(str(path))
        _write(writer, Event(wall_time=times[0] if times else end, file_version="brain.Event:2"))
        for summary in hparams(values, final):
            _write(writer, Event(wall_time=end, summary=summary))
        for epoch, when in zip(outcome.epochs, times, strict=True):
            for name in _CURVES:
                if epoch[name] is not None:
                    _write(writer, Event(wall_time=when, step=epoch["epoch"], summary=scalar(name, epoch[name])))
        for name, value in final.items():
            _write(writer, Event(wall_time=end, step=row["epochs_run"], summary=scalar(name, value)))
        writer.close()
        return path.read_bytes()


def _times(epochs: list[dict[str, Any]], end: float) -> list[float]:
    """When each epoch ended, counted back from the trial's end."""
    times: list[float] = []
    for epoch in reversed(epochs):
        times.append(end)
        end -= epoch["seconds"] or 0.0
    return times[::-1]


def _write(writer: RecordWriter, event: Event) -> None:
    writer.write(event.SerializeToString())
