"""Interleaved trainings: several of one process, a step of each in turn, side by side on its GPU.

A small network leaves most of a GPU idle: its kernels are small, and each waits for the one before. Those of different
trainings wait for nobody: each training has a stream of its own, and the host goes round. What a training computes
does not depend on who else is there: these are the same kernels on the same numbers.
"""

import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar

import torch

from gcsr.config import MOST_INTERLEAVED
from gcsr.randomness import gpu_generator, undisturbed

__all__ = ["Ended", "Interleaved", "Pace", "Steps", "finished"]

T = TypeVar("T")

Steps: TypeAlias = Generator[bool, None, T]
"""A training that hands the process over after each step: it yields whether an epoch ended, and returns its result.

Between its turns it relies on torch's generators of random numbers to stay as it left them, and on nothing else.
"""

_GAIN = 1.1  # a doubling that makes not even so many times the steps a second is taken back
_WINDOW_SECONDS = 1.0
_SPARE = 1.2  # of the memory that a training is expected to take


def finished(steps: Steps[T]) -> T:
    """Take all steps at once; returns the result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


@dataclass(frozen=True, slots=True)
class Ended(Generic[T]):
    """A training's end: its place in the order given, and its result or what it raised."""

    place: int
    result: T | Exception


class Interleaved(Generic[T]):
    """Runs trainings, several at a time.

    One that fails beside others may only have found the GPU's memory full: it begins again when they have ended, from
    its last checkpoint if it keeps any. What it raises then is its own.

    Args:
        trainings: each begins one; started in this order.
        device: that all of them use.
        precision: of all of them.
        at_once: how many; ``auto``: doubled up to `gcsr.config.MOST_INTERLEAVED` for as long as that makes more steps
            a second, which is measured on the way, and there is memory. On a CPU that is one.
    """

    def __init__(
        self,
        trainings: Sequence[Callable[[], Steps[T]]],
        device: torch.device,
        precision: str,
        at_once: int | Literal["auto"],
    ) -> None:
        self._trainings, self._device, self._precision = trainings, device, precision
        self._waiting = deque(range(len(trainings)))
        self._again: list[int] = []
        self._lanes: list[_Lane[T]] = []
        self._idle: list[_Place] = []
        climbs = at_once == "auto" and device.type == "cuda"
        if climbs:
            torch.cuda.empty_cache()  # what earlier trainings left would count as these'
        self._pace = Pace(device) if climbs else Pace(device, 1 if at_once == "auto" else at_once)

    def __iter__(self) -> Iterator[Ended[T]]:
        return self

    def __next__(self) -> Ended[T]:
        """Go on until a training ends."""
        with undisturbed(self._device, self._precision):
            while self._waiting or self._lanes or self._again:
                self._fill()
                ended = self._go_round()
                if ended is not None:
                    return ended
        raise StopIteration

    def _fill(self) -> None:
        if self._again and not self._waiting and not self._lanes:
            self._waiting.append(self._again.pop(0))
        while self._waiting and len(self._lanes) < self._pace.width:
            index = self._waiting.popleft()
            place = self._idle.pop() if self._idle else _place_on(self._device)
            self._lanes.append(_Lane(index, self._trainings[index](), place))

    def _go_round(self) -> Ended[T] | None:
        alone = len(self._lanes) == 1 and (self._pace.settled or not self._waiting)
        lanes = self._lanes[: self._pace.width]
        for lane in lanes:
            try:
                lane.turn(to_its_end=alone)
            except StopIteration as end:
                return self._ended(lane, end.value)
            except RuntimeError as error:  # of which torch's and its libraries' want of memory are
                if len(self._lanes) == 1:
                    return self._ended(lane, error)
                if isinstance(error, torch.OutOfMemoryError):
                    self._pace.settle(min(self._pace.width, len(self._lanes) - 1))
                self._again.append(lane.index)
                self._leave(lane)
                return None
            except Exception as error:
                return self._ended(lane, error)
        self._pace.measure(len(lanes), min(lane.epochs for lane in lanes))
        return None

    def _ended(self, lane: "_Lane[T]", result: T | Exception) -> Ended[T]:
        if isinstance(result, Exception):
            _let_go(result)
        self._leave(lane)
        return Ended(lane.index, result)

    def _leave(self, lane: "_Lane[T]") -> None:
        self._lanes.remove(lane)
        self._idle.append(lane.place)
        self._pace.interrupted()


def _let_go(error: BaseException | None) -> None:
    """Free what the frames of an error still hold: all tensors of the training, whose memory the next one needs."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


class Pace:
    """How many trainings take turns: as given, or doubled until that makes no more steps a second.

    Args:
        device: that they use.
        width: as given; None to find out.
        clock: seconds.
    """

    def __init__(
        self, device: torch.device, width: int | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._device, self._clock = device, clock
        self.width = 1 if width is None else width
        self.settled = width is not None
        self._before = 0.0  # steps a second at half the width
        self.interrupted()

    def settle(self, width: int) -> None:
        """Stay at a width."""
        self.width, self.settled = width, True

    def interrupted(self) -> None:
        """Somebody came or went: what was measured is of no use."""
        self._began: float | None = None

    def measure(self, steps: int, epochs: int) -> None:
        """After a round of turns.

        Args:
            steps: in this round, one a training.
            epochs: that each of them has ended at least, since it came.
        """
        if self.settled or steps < self.width or epochs == 0:
            return  # too few are left, or graphs are being set up
        if self._began is None:
            self._began, self._first, self._steps = self._now(), epochs, 0
            return
        self._steps += steps
        if epochs == self._first or self._clock() - self._began < _WINDOW_SECONDS:
            return
        rate = self._steps / (self._now() - self._began)
        if rate < _GAIN * self._before:
            self.settle(self.width // 2)
        elif 2 * self.width > MOST_INTERLEAVED or not self._room(self.width):
            self.settle(self.width)
        else:
            self._before = rate
            self.width *= 2
        self.interrupted()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # the host is ahead of the GPU
        return self._clock()

    def _room(self, more: int) -> bool:
        """Whether the GPU has memory for so many more, by what those that run have taken."""
        if self._device.type != "cuda":
            return True
        free, total = torch.cuda.mem_get_info(self._device)
        taken = torch.cuda.memory_reserved(self._device)
        share = torch.cuda.get_per_process_memory_fraction(self._device.index)  # with --gpu-share
        allowed = share * total - taken
        return _SPARE * taken / self.width * more < min(free, allowed)


class _Lane(Generic[T]):
    """A training under way."""

    def __init__(self, index: int, steps: Steps[T], place: "_Place") -> None:
        self.index, self.place = index, place
        self.epochs = 0
        self._steps = steps

    def turn(self, *, to_its_end: bool) -> None:
        """One turn, or all that are left.

        Raises:
            StopIteration: the training has ended, with this value.
        """
        with self.place:
            while True:
                self.epochs += next(self._steps)
                if not to_its_end:
                    return


class _Place(Protocol):
    """What a training finds as it left it, whenever its turn comes."""

    def __enter__(self) -> object: ...

    def __exit__(self, *error: object) -> None: ...


class _OnCpu:
    """The state of torch's generator."""

    def __init__(self) -> None:
        self._random = torch.get_rng_state()

    def __enter__(self) -> None:
        torch.set_rng_state(self._random)

    def __exit__(self, *error: object) -> None:
        self._random = torch.get_rng_state()


class _OnGpu:
    """A stream, and a state of the GPU's generator that graphs captured there go on from."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))  # what the caller has begun there goes first
        self._generator = gpu_generator(device)
        self._random = self._generator.clone_state()

    def __enter__(self) -> None:
        self._outside = self._generator.graphsafe_get_state()
        self._generator.graphsafe_set_state(self._random)
        self._context = torch.cuda.stream(self._stream)
        self._context.__enter__()

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(None, None, None)
        self._generator.graphsafe_set_state(self._outside)


def _place_on(device: torch.device) -> _Place:
    return _OnGpu(device) if device.type == "cuda" else _OnCpu()
