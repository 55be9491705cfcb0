"""Checkpoints: one file a trial, written whole, read without unpickling code."""

import time
from pathlib import Path
from typing import Any, Protocol

import torch

from gcsr.archive import packed, unpacked
from gcsr.config import TrialConfig
from gcsr.errors import CheckpointError
from gcsr.files import write_atomically

__all__ = ["CheckpointStorage", "Checkpointer", "FileStorage"]

FORMAT = 2


class CheckpointStorage(Protocol):
    """Where a checkpoint's bytes are kept: a local file, or an object of a remote store."""

    def read(self) -> bytes | None:
        """The last complete checkpoint; None if there is none."""

    def write(self, data: bytes) -> None:
        """Replace the checkpoint, atomically."""

    def remove(self) -> None:
        """Forget the checkpoint, if any."""


class FileStorage:
    """A checkpoint in a local file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> bytes | None:
        return self.path.read_bytes() if self.path.exists() else None

    def write(self, data: bytes) -> None:
        with write_atomically(self.path) as file:
            file.write(data)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def __str__(self) -> str:
        return str(self.path)


class Checkpointer:
    """Saves a trial's state after epochs, and gives it back.

    Args:
        storage: where.
        every_epochs: save after every so many epochs.
        min_seconds: but not sooner than this after the last save (a short trial is cheaper to repeat than to save).
        max_share: share of the time that saving may take: slow or much shared storage is used less often.
        deadline: as `time.time` counts; once it has passed every epoch is saved, and training stops there.
    """

    def __init__(
        self,
        storage: CheckpointStorage,
        *,
        every_epochs: int = 1,
        min_seconds: float = 0.0,
        max_share: float = 1.0,
        deadline: float | None = None,
    ) -> None:
        self.storage = storage
        self._deadline = deadline
        self._every_epochs = every_epochs
        self._min_seconds = min_seconds
        self._max_share = max_share
        self._next = time.monotonic() + min_seconds

    def due(self, epochs_done: int) -> bool:
        """Whether a checkpoint is to be saved after ``epochs_done`` epochs."""
        if self.out_of_time():
            return True
        waited = time.monotonic() >= self._next
        return waited and epochs_done % self._every_epochs == 0

    def out_of_time(self) -> bool:
        """Whether the deadline has passed."""
        return self._deadline is not None and time.time() >= self._deadline

    def save(self, config: TrialConfig, state: dict[str, Any]) -> None:
        """Write ``state`` (tensors and plain values) for the trial."""
        began = time.monotonic()
        about = {"format": FORMAT, "trial_id": config.trial_id, "config": config.to_dict()}
        self.storage.write(packed(about | {"state": state}))
        now = time.monotonic()
        self._next = now + max(self._min_seconds, (now - began) * (1 / self._max_share - 1))

    def load(self, config: TrialConfig, device: torch.device) -> dict[str, Any] | None:
        """The state last saved for this trial; None if there is none.

        Raises:
            CheckpointError: it is damaged, or of another trial or format.
        """
        data = self.storage.read()
        if data is None:
            return None
        try:
            saved = unpacked(data, device)
            found, owner = saved["format"], saved["trial_id"]
            state: dict[str, Any] = saved["state"]
        except (KeyError, ValueError) as error:
            # Who named a file of something else by mistake must not be told to delete it.
            raise CheckpointError(
                f"checkpoint: {self.storage} is no checkpoint of gcsr, or damaged ({error}); expected one, or a file "
                "that is not there"
            ) from None
        if found != FORMAT:
            raise CheckpointError(f"checkpoint: {self.storage} is in format {found}; expected {FORMAT}")
        if owner != config.trial_id:
            before, now = saved.get("config"), config.to_dict()
            known = before if isinstance(before, dict) else {}  # older ones say only whose they are
            others = [
                f"{name} {known[name]} instead of {now[name]}"
                for name in now
                if name in known and known[name] != now[name]
            ]
            raise CheckpointError(f"checkpoint: {self.storage} is of another trial: {', '.join(others) or owner}")
        return state
