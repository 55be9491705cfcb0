"""A training step that is captured once and replayed: on NVIDIA GPUs the host then launches one graph instead of some
hundred small kernels, which takes it longer than the GPU computes them for networks on 32×32 images.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Capture", "CudaCapture", "ReplayedStep", "capture_for"]

_WARM_UP = 3  # eager calls before a capture, as torch recommends: libraries set themselves up in the first ones


class Capture(Protocol):
    """How a device captures work."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do ``work`` now, where captures are made."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Note what ``work`` would do, without doing it; returns what does it."""


class CudaCapture:
    """CUDA graphs, each with memory of its own.

    A graph keeps using the workspaces that cuBLAS has for the stream it was captured on. So they are captured where
    they are replayed: torch's streams are 32 in turn, and another one might be that of a graph running beside.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.current_stream(device)
        if self._stream == torch.cuda.default_stream(device):  # where nothing can be captured
            self._stream = torch.cuda.Stream(device)

    def warm_up(self, work: Callable[[], None]) -> None:
        outside = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            work()
        outside.wait_stream(self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # Other threads of this process (Ray's, say) may go on meanwhile.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


def capture_for(device: torch.device, *, own_network: bool = False) -> Capture | None:
    """How steps are captured on ``device``; None where they are not.

    ``GCSR_GRAPHS=0`` forces that, and ``GCSR_GRAPHS=1`` asks for it with a network of the user's own, which may read
    something back or copy from the host in its steps.
    """
    wanted = os.environ.get("GCSR_GRAPHS", "0" if own_network else "1") != "0"
    return CudaCapture(device) if wanted and device.type == "cuda" and torch.version.cuda is not None else None


@dataclass(frozen=True, slots=True)
class _Captured:
    inputs: tuple[Tensor, ...]
    replay: Callable[[], None]


def _copied(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(given.clone(memory_format=torch.contiguous_format) for given in inputs)


class ReplayedStep:
    """Does a step for what it changes in tensors that outlive it; after a few calls by replaying it.

    It holds no reference to the step, so that what a step belongs to is freed with its last user, and at once: graphs
    hold a GPU's memory.

    Args:
        capture: how; None to do the step itself every time.
        after_capture: called after each capture.
    """

    def __init__(self, capture: Capture | None, after_capture: Callable[[], None]) -> None:
        self._capture, self._after_capture = capture, after_capture
        self._decided: object = None
        self._warm: dict[int, int] = {}
        self._captured: dict[int, _Captured] = {}

    def __call__(self, step: Callable[..., None], decided: object, size: int, *inputs: Tensor) -> None:
        """Do ``step(size, *inputs)``.

        Args:
            step: the same every time; reads nothing back and copies nothing from the host.
            decided: what a captured step cannot ask again; when it changes, the step is captured anew.
            size: the shapes of ``inputs`` depend on nothing else.
            inputs: tensors.
        """
        if self._capture is None:
            step(size, *inputs)
            return
        if decided != self._decided:
            self._decided = decided
            self._captured.clear()
            self._warm = {known: min(count, _WARM_UP - 1) for known, count in self._warm.items()}  # other kernels run
        captured = self._captured.get(size)
        if captured is None and self._warm.get(size, 0) < _WARM_UP:
            self._warm[size] = self._warm.get(size, 0) + 1
            # On copies, as captured steps are: where a tensor lies decides which kernel runs, and must not be new then.
            copies = _copied(inputs)
            self._capture.warm_up(lambda: step(size, *copies))
            return
        if captured is None:
            held = _copied(inputs)
            captured = self._captured[size] = _Captured(held, self._capture.capture(lambda: step(size, *held)))
            self._after_capture()
        for place, given in zip(captured.inputs, inputs, strict=True):
            place.copy_(given)
        captured.replay()
