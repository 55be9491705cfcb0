"""One writer at a time on a store that has no locks: a lease that its holder renews."""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gcsr import InvalidInputError

if TYPE_CHECKING:
    from tune.store import Store

__all__ = ["lease"]

_NAME = "lease.json"
_RENEW_SECONDS = 10.0
_VALID_SECONDS = 45.0
_SETTLE_SECONDS = 1.0  # two that start at once: the one whose lease is still there after this holds it


@contextlib.contextmanager
def lease(store: "Store") -> Iterator[None]:
    """Hold the right to write, or refuse.

    A lease whose holder is a dead process of this machine is taken over at once; one from elsewhere when it has not
    been renewed for `_VALID_SECONDS`.

    Raises:
        InvalidInputError: another run holds it.
    """
    mine = uuid.uuid4().hex
    _refuse_if_held(store, mine)
    _renew(store, mine)
    time.sleep(_SETTLE_SECONDS)
    _refuse_if_held(store, mine)
    done = threading.Event()

    def renewing() -> None:
        while not done.wait(_RENEW_SECONDS):
            with contextlib.suppress(OSError):  # the next one may pass; until then the old one is valid
                _renew(store, mine)

    thread = threading.Thread(target=renewing, daemon=True, name="gcsr-lease")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(OSError):
            store.remove(_NAME)


def _renew(store: "Store", mine: str) -> None:
    store.write_json(_NAME, {"id": mine, "host": socket.gethostname(), "pid": os.getpid(), "renewed": time.time()})


def _refuse_if_held(store: "Store", mine: str) -> None:
    found = store.read_json(_NAME)
    if found is None or found.get("id") == mine or _is_over(found):
        return
    holder = f"process {found.get('pid')} on {found.get('host')}"
    raise InvalidInputError(
        f"out: {store.location!r} is in use by another gcsr run ({holder}); wait for it or stop it (if it died, its "
        f"claim ends {_VALID_SECONDS:.0f} s after its last sign of life)"
    )


def _is_over(found: dict[str, Any]) -> bool:
    renewed, pid = found.get("renewed"), found.get("pid")
    if not isinstance(renewed, int | float) or not isinstance(pid, int) or time.time() - renewed > _VALID_SECONDS:
        return True
    if found.get("host") != socket.gethostname() or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
