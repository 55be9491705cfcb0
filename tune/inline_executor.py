"""The inline executor: one unit after the other in this process, without Ray."""

import itertools
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Self

import torch

from gcsr import InvalidInputError, TrialConfig
from tune.cutting import UnitCutter, alone_on_cpus
from tune.job import SweepJob, UnitSource
from tune.recorder import Listener
from tune.trial import choose_device, threads_for
from tune.units import run_unit

__all__ = ["InlineExecutor"]


class InlineExecutor:
    """Runs trials in this process: for a debugger, and for a single GPU.

    Args:
        job: what the trials share; it must ask for one worker.
        threads: CPU threads; see `tune.trial.threads_for`. With as many as a Ray worker has, one unless it is told
            otherwise, the same trial gives the same bits in both executors.
    """

    def __init__(self, job: SweepJob, threads: int | Literal["auto"] = "auto") -> None:
        if job.workers != 1:
            raise InvalidInputError(f"workers: {job.workers} is not allowed with --executor inline; expected 1")
        self._threads, self._device = threads, choose_device(job.device)
        self._job = alone_on_cpus(job, gpu=self._device.type == "cuda")
        self._all = torch.get_num_threads()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.set_num_threads(self._all)

    @property
    def cutter(self) -> UnitCutter:
        """Cuts trials into units for this executor."""
        return UnitCutter(job=self._job, gpu=self._device.type == "cuda", slots=1)

    def run(self, work: Sequence[Sequence[TrialConfig]], listener: Listener) -> None:
        """Run all units in this order; the listener hears of each before the next."""
        for unit in work:
            torch.set_num_threads(threads_for(unit[0], self._device, self._threads, self._all))
            for outcome in itertools.chain.from_iterable(run_unit(unit, self._job)):
                listener.ended(outcome)

    def search(self, source: UnitSource, listener: Listener) -> None:
        """Run units as the source gives them, until it has finished."""
        while (unit := source.next()) is not None:
            self.run([unit], listener)
