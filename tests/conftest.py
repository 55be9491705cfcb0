import os
import signal

import pytest
from hypothesis import settings

# The tests' networks are so small that a second thread only waits for the first, and several processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background job ignores Ctrl-C, and hands that on to what the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("gcsr", deadline=None)  # of time: machines are shared
settings.load_profile("gcsr")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: several processes share the tests, and none should end with a long one."""
    items.sort(key=_seconds, reverse=True)


def _seconds(item: pytest.Item) -> int:
    slow = item.get_closest_marker("slow")
    return 0 if slow is None else slow.args[0]
