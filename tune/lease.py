"""One writer at a time on a store that has no locks: a lease that its holder renews."""

import contextlib
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Self

from gcsr import InvalidInputError
from tune.folder import Folder, LostStoreError

__all__ = ["Lease", "LostLeaseError"]

_NAME = "lease.json"
_CLOCK = "lease.clock"
_RENEW_SECONDS = 10.0
_VALID_SECONDS = 45.0
_SETTLE_SECONDS = 1.0  # two that start at once: the one whose lease is still there after this holds it


class LostLeaseError(OSError):
    """Another run took the store over."""


class Lease:
    """The right to write to a store, renewed by a thread of its own; a context manager.

    A lease whose holder is a dead process of this machine is taken over at once; one from elsewhere when it has not
    been renewed for `_VALID_SECONDS`, by the store's clock. A holder that was suspended or cut off for so long finds
    out at its next renewal: for `_RENEW_SECONDS` after it woke, two may write.

    Args:
        folder: the store's.

    Raises:
        InvalidInputError: on entering, if another run holds it.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder, self._id = folder, uuid.uuid4().hex
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renewing, daemon=True, name="gcsr-lease")
        self._lost: LostLeaseError | LostStoreError | None = None

    def __enter__(self) -> Self:
        found = self._folder.read_json(_NAME)
        if found is not None and not self._is_over(found):
            raise self._refusal(found)
        try:
            self._write()
            time.sleep(_SETTLE_SECONDS)
            found = self._folder.read_json(_NAME) or {}
            if found.get("id") != self._id:
                raise self._refusal(found)
        except BaseException:  # Ctrl-C, too: what is not held is not to be waited for
            self._give_back()
            raise
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        self._give_back()

    def _give_back(self) -> None:
        with contextlib.suppress(OSError, InvalidInputError):
            if (self._folder.read_json(_NAME) or {}).get("id") == self._id:
                self._folder.remove(_NAME)

    def check(self) -> None:
        """Raise if another run has taken over.

        Raises:
            LostLeaseError: it has.
            LostStoreError: nobody holds a lease, which may mean that all of the store was deleted.
        """
        if self._lost is not None:
            raise self._lost

    def _renewing(self) -> None:
        while self._lost is None and not self._done.wait(_RENEW_SECONDS):
            with contextlib.suppress(OSError, InvalidInputError):  # the next may pass; until then the old one is valid
                found = self._folder.read_json(_NAME)
                if found is None:
                    self._lost = LostStoreError(
                        f"out: {self._folder.location!r} was deleted while this run wrote into it, or was taken over "
                        "by another gcsr run, which has ended"
                    )
                elif found.get("id") == self._id:
                    self._write()
                else:
                    self._lost = LostLeaseError(
                        f"out: {self._folder.location!r} was taken over by another gcsr run ({_holder(found)}) while "
                        "this one was suspended or cut off"
                    )

    def _write(self) -> None:
        machine = {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid()}
        self._folder.write_json(_NAME, {"id": self._id} | machine)

    def _is_over(self, found: dict[str, Any]) -> bool:
        if found.get("machine") == _machine() and not _is_alive(found.get("pid")):
            return True
        # Clocks of machines may differ by minutes: the store's own is read off a file written now.
        self._folder.write_bytes(_CLOCK, self._id.encode())
        now, renewed = self._folder.modified(_CLOCK), self._folder.modified(_NAME)
        self._folder.remove(_CLOCK)
        return now is not None and renewed is not None and now - renewed > _VALID_SECONDS

    def _refusal(self, found: dict[str, Any]) -> InvalidInputError:
        return InvalidInputError(
            f"out: {self._folder.location!r} is in use by another gcsr run ({_holder(found)}); wait for it or stop it "
            f"(if it died, its claim ends {_VALID_SECONDS:.0f} s after its last sign of life)"
        )


def _holder(found: dict[str, Any]) -> str:
    return f"process {found['pid']} on {found['host']}" if "pid" in found and "host" in found else "which has ended"


def _machine() -> str:
    """What has the same process numbers as this process: not all hosts of one name, and no two containers of a host."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # no Linux
        return f"{socket.gethostname()}/{uuid.getnode():x}"


def _is_alive(pid: object) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
