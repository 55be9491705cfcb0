"""What a CUDA graph does, on the CPU: the operations of a step are noted once, and done again with the same tensors.

As there: capturing does nothing, reading a number back is refused, Python's numbers and branches are those of the
capture, tensors stay where they were, and random numbers are drawn anew.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
# Reading back, results whose size is data, and tensors made of what is on the host.
REFUSED = {aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten._unique2, aten.lift_fresh}


class NotedCapture:
    """A `gcsr.graph.Capture` for the CPU."""

    def __init__(self) -> None:
        self.captures = 0
        self.replays = 0

    def warm_up(self, work: Callable[[], None]) -> None:
        work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        random = torch.get_rng_state()
        notes = _Notes()
        with notes:
            work()
        with torch.no_grad():
            for tensor, before in reversed(notes.written):
                tensor.copy_(before)
        torch.set_rng_state(random)

        def replay() -> None:
            self.replays += 1
            with torch.no_grad():
                for func, args, kwargs, results in notes.calls:
                    for old, new in zip(results, _tensors(func(*args, **kwargs)), strict=True):
                        if old is not None:
                            old.copy_(new)

        return replay


class _Notes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor | None]]] = []
        self.written: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket in REFUSED:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.written += [(tensor, tensor.clone()) for tensor in _tensors(value)]
        given = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        out = func(*args, **kwargs)
        # What lies in a given tensor's memory is there already when the operation is done again.
        results = [None if t.untyped_storage().data_ptr() in given else t for t in _tensors(out)]
        self.calls.append((func, args, kwargs, results))
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
