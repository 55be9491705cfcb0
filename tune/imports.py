"""Imports that a process of a sweep makes once, for as long as it lives."""

import gc
from importlib import import_module

__all__ = ["import_for_good"]


def import_for_good(*modules: str) -> None:
    """Import modules, and never look for garbage in what that leaves.

    To look would take a sixth of the time of the imports; and in a process that is forked, copy their memory each time.
    """
    gc.disable()
    for module in modules:
        import_module(module)
    gc.freeze()
    gc.enable()
