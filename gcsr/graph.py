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

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
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


def capture_for(device: torch.device) -> Capture | None:
    """How steps are captured on ``device``; None where they are not. ``GCSR_GRAPHS=0`` forces that."""
    if device.type != "cuda" or torch.version.cuda is None or os.environ.get("GCSR_GRAPHS") == "0":
        return None
    return CudaCapture(device)


@dataclass(frozen=True, slots=True)
class _Captured:
    inputs: tuple[Tensor, ...]
    replay: Callable[[], None]


class ReplayedStep:
    """Calls a step for what it does to tensors that outlive it; after a few calls it is a replay.

    Args:
        step: ``step(size, *inputs)``; reads nothing back and copies nothing from the host.
        capture: how; None to call ``step`` every time.
        decisions: what a captured step cannot ask again; when it changes, steps are captured anew.
        after_capture: called after each capture.
    """

    def __init__(
        self,
        step: Callable[..., None],
        capture: Capture | None,
        decisions: Callable[[], object],
        after_capture: Callable[[], None],
    ) -> None:
        self._step, self._capture = step, capture
        self._decisions, self._after_capture = decisions, after_capture
        self._decided: object = None
        self._warm: dict[int, int] = {}
        self._captured: dict[int, _Captured] = {}

    def __call__(self, size: int, *inputs: Tensor) -> None:
        """One step.

        Args:
            size: a number that ``step`` gets; the shapes of ``inputs`` depend on nothing else.
            inputs: tensors that ``step`` gets.
        """
        if self._capture is None:
            self._step(size, *inputs)
            return
        decided = self._decisions()
        if decided != self._decided:
            self._decided = decided
            self._captured.clear()
            self._warm = {known: min(count, _WARM_UP - 1) for known, count in self._warm.items()}  # other kernels run
        if size not in self._captured:
            if self._warm.get(size, 0) < _WARM_UP:
                self._warm[size] = self._warm.get(size, 0) + 1
                self._capture.warm_up(lambda: self._step(size, *inputs))
                return
            self._captured[size] = self._captures(self._capture, size, inputs)
        captured = self._captured[size]
        for held, given in zip(captured.inputs, inputs, strict=True):
            held.copy_(given)
        captured.replay()

    def _captures(self, capture: Capture, size: int, inputs: tuple[Tensor, ...]) -> _Captured:
        held = tuple(given.clone(memory_format=torch.contiguous_format) for given in inputs)
        replay = capture.capture(lambda: self._step(size, *held))
        self._after_capture()
        return _Captured(held, replay)
