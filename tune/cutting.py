"""Cutting trials into units of work: what one process trains before it is given more. Imports torch for digits on
GPUs only.
"""

import functools
import itertools
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Literal

from gcsr import TrialConfig
from gcsr.config import MOST_INTERLEAVED, cohort_key
from gcsr.names import is_mlp, is_own_network
from tune.job import SweepJob

__all__ = ["UnitCutter", "alone_on_cpus", "are_in_turn", "is_stacked"]

_SMALL = 150_000  # parameters
_SHORT = 300  # epochs on digits, as a cohort that is killed, or meets a deadline, has lost them all
_IN_TURN = 8  # short trials that a worker is given at once: to be given one costs 60 ms
_COHORT = 32
_EVEN = 4  # more cohorts than these come in multiples of it, so that two or four GPUs are done at the same time


def is_stacked(config: TrialConfig, cohort: int | Literal["auto"]) -> bool:
    """Whether the trial is trained as a member of a cohort, be it the only one.

    With ``auto``, which an executor without GPUs takes for 1 (`alone_on_cpus`), small plain networks on digits are, for
    up to `_SHORT` epochs: they are so short that they write no checkpoints anyway. A trial's bits depend on the answer,
    so it depends on nothing but the trial and the option: not on which other trials are to be run. A user's own network
    never is: it may be of any kind.
    """
    if is_own_network(config.model):
        return False
    if cohort != "auto":
        return cohort > 1
    return _is_short(config) and _parameters(config.model, config.width) <= _SMALL


def alone_on_cpus(job: SweepJob, *, gpu: bool) -> SweepJob:
    """The job, with ``cohort: auto`` decided where there is no GPU: on a CPU a cohort takes twice as long as its trials
    one by one (``python -m tests.benchmarks cohort``).
    """
    return job if gpu or job.cohort != "auto" else replace(job, cohort=1)


def are_in_turn(unit: Sequence[TrialConfig], job: SweepJob) -> bool:
    """Whether the trials of a unit are short, and trained one after the other: what one gave may wait for the next."""
    alone = job.trials_per_gpu == 1 or (job.trials_per_gpu == "auto" and job.device == "cpu")
    return alone and all(map(_is_short, unit))


@functools.lru_cache
def _parameters(model: str, width: float) -> int:
    import torch  # only here: the process that hands out trials needs none of it, and torch takes seconds

    from gcsr.models import build_model

    with torch.device("meta"):
        network = build_model(model, input_shape=(1, 8, 8), classes=10, width=width, dropout=0.0)
    return sum(p.numel() for p in network.parameters())


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitCutter:
    """Cuts trials into units.

    Attributes:
        job: of the sweep.
        gpu: whether its trials run on GPUs.
        slots: how many units run at once.
    """

    job: SweepJob
    gpu: bool
    slots: int

    def cut(self, trials: Sequence[TrialConfig], missing: Set[str] | None = None) -> list[list[TrialConfig]]:
        """Units that can be trained together, in the trials' order as far as possible.

        Cohorts are cut from all trials, and whole: who is stacked with whom changes their bits, and must not depend on
        what a killed run left. Of all others only those that are missing are in a unit.

        Args:
            trials: of a sweep, or of a setting.
            missing: ids of those that have not ended; None for all.
        """

        def wanted(config: TrialConfig) -> bool:
            return missing is None or config.trial_id in missing

        cohorts: dict[tuple[object, ...], list[TrialConfig]] = {}
        others: dict[tuple[object, ...], list[TrialConfig]] = {}
        found: list[list[TrialConfig]] = []
        for config in trials:
            if self.job.workers == 1 and is_stacked(config, self.job.cohort):
                cohorts.setdefault(cohort_key(config), []).append(config)
            elif wanted(config):
                others.setdefault(_interleaving_key(config), []).append(config)
        for group in cohorts.values():
            parts = _parts(group, self._cohorts(len(group)))
            found += [part for part in parts if any(map(wanted, part))]
        for group in others.values():
            found += self._units(group)
        places = {config: place for place, config in enumerate(trials)}
        return sorted(found, key=lambda unit: places[unit[0]])

    def at_once(self, units: Sequence[Sequence[TrialConfig]]) -> int:
        """How many trials of such units are under way at once, at most."""
        return self.slots * max(map(self.under_way, units), default=1)

    def under_way(self, unit: Sequence[TrialConfig]) -> int:
        """How many trials of a unit are under way at once, at most."""
        return len(unit) if is_stacked(unit[0], self.job.cohort) else min(len(unit), self._most_interleaved())

    def _most_interleaved(self) -> int:
        if self.job.trials_per_gpu != "auto":
            return self.job.trials_per_gpu
        return MOST_INTERLEAVED if self.gpu else 1

    def _cohorts(self, trials: int) -> int:
        """How many cohorts to make of trials that can be stacked."""
        if self.job.cohort != "auto":
            return -(-trials // self.job.cohort)
        count = -(-trials // _COHORT)
        return count if count <= _EVEN else -(-count // _EVEN) * _EVEN

    def _units(self, group: list[TrialConfig]) -> list[list[TrialConfig]]:
        """Units of trials that are not stacked, and that leave no slot idle at the end."""
        most = self._most_interleaved()
        if self.job.workers > 1:
            return [[config] for config in group]
        if most == 1:
            return _tapering(group, self.slots)
        # As few as can be: with one slot that is one, in which a trial that ends makes room for the next.
        rounds = 1 if self.slots == 1 else -(-len(group) // (most * self.slots))
        return _parts(group, min(len(group), rounds * self.slots))


def _tapering(group: list[TrialConfig], slots: int) -> list[list[TrialConfig]]:
    """Units of trials that are trained one after the other: several short ones, fewer and fewer towards the end."""
    units, low, most = [], 0, _IN_TURN if all(map(_is_short, group)) else 1
    while low < len(group):
        size = min(most, -(-(len(group) - low) // slots))
        units.append(group[low : low + size])
        low += size
    return units


def _is_short(config: TrialConfig) -> bool:
    plain = config.dataset == "digits" and is_mlp(config.model)
    return plain and config.epochs <= _SHORT  # type: ignore[operator]


def _interleaving_key(config: TrialConfig) -> tuple[object, ...]:
    """What trials must have in common to be interleaved: they round alike, on one data set, and one network is of one
    size, as whoever measures how many fit takes for granted.
    """
    return config.dataset, config.model, config.width, config.precision


def _parts(group: list[TrialConfig], count: int) -> list[list[TrialConfig]]:
    """The group in so many parts, as equal as can be."""
    bounds = [len(group) * k // count for k in range(count + 1)]
    return [group[low:high] for low, high in itertools.pairwise(bounds)]
