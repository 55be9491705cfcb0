"""The tolerance level (Figure 7): the strongest λ at which a network still learns, by bisection on log λ."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gcsr import ConfigError, InvalidInputError, TrialConfig
from tune.compaction import take_up
from tune.manifest import note_run
from tune.recorder import RunOutcome
from tune.row_source import Wanted, run_source
from tune.run_options import RunOptions
from tune.runs import check_machine, check_unused, end_at_once, job_of, open_executor, recording
from tune.spec import SweepSpec
from tune.store import Store

__all__ = ["Level", "ToleranceOutcome", "methods_of", "run_tolerance"]

_DIGITS = 4  # significant ones of a λ that bisection tries
_ROUNDED = 10.0 ** (1 - _DIGITS)  # what rounding adds to log λ's halves at most, over all halvings


@dataclass(frozen=True, slots=True)
class Level:
    """Where one method stops learning.

    Attributes:
        config: the method, with the first seed and any λ.
        tolerance_lam: the largest λ found at which every seed learns; None if not even the smallest of the grid is.
        collapse_lam: the smallest λ found at which a seed does not learn; None if even the largest of the grid does.
        trials: how many trainings it took.
    """

    config: TrialConfig
    tolerance_lam: float | None
    collapse_lam: float | None
    trials: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ToleranceOutcome(RunOutcome):
    """How a search for tolerance levels ended.

    Attributes:
        levels: one for each method of the spec; of one with a failed trial it says nothing.
        grid: how many trials the spec's grid has for these methods.
    """

    levels: tuple[Level, ...]
    grid: int


def run_tolerance(spec: SweepSpec, store: Store, options: RunOptions, *, precision: float) -> ToleranceOutcome:
    """Find the level of every method of a spec between the smallest and the largest λ of its grid.

    Args:
        spec: what to try; modes other than ``none``.
        store: as for a sweep; trials that it holds already are not run again.
        options: as for a sweep.
        precision: bisection ends when the two λ are no further apart than this, relative to the smaller.

    Raises:
        InvalidInputError: the spec, the data or the store cannot be used; nothing was started.
    """
    methods = methods_of(spec, precision)
    trials = [config for method in methods for config in method]
    check_unused(store, options)
    check_machine(trials, options, spec.workers)
    job = job_of(spec, store, options)
    with store.exclusive():
        stored = {row["trial_id"]: row for row in take_up(store).to_pylist()}
        source = _Bisections(methods, precision, stored)
        ended_before = source.replay()
        if source.finished:
            end_at_once(store, spec, job, options, trials)
            return source.outcome({}, ())
        with open_executor(store, job, options, trials) as executor:
            cutter = executor.cutter
            note_run(store, spec, cutter.job, trials)
            at_one_lam = [config for config in methods[0] if config.lam == methods[0][0].lam]
            with recording(
                store,
                spec,
                options,
                total=source.at_most,
                stored=stored.keys(),
                slots=cutter.slots,
                at_once=cutter.at_once(cutter.cut(at_one_lam)),
                ended_before=ended_before,
                at_most=True,
            ) as recorder:
                run_source(executor, source, recorder)
            return source.outcome(recorder.statuses, recorder.failures)


def methods_of(spec: SweepSpec, precision: float) -> list[list[TrialConfig]]:
    """The grid's trials, a list for each method: they differ in λ and seed only.

    Raises:
        InvalidInputError: there is nothing to search between, or not to that precision.
    """
    if not 1e-3 <= precision <= 10:
        raise InvalidInputError(f"precision: {precision:g} is not allowed; expected a number from 0.001 to 10")
    groups: dict[str, list[TrialConfig]] = {}
    for config in spec.trials():
        if config.mode != "none":
            groups.setdefault(replace(config, lam=1.0, seed=0).trial_id, []).append(config)
    for group in groups.values():
        if len({config.lam for config in group if config.lam > 0}) < 2:
            raise ConfigError("lam", sorted({config.lam for config in group}), "two values > 0 to search between")
    if not groups:
        raise InvalidInputError("mode: none has no tolerance level; expected baseline, ours or ours_orig")
    return list(groups.values())


class _Bisection:
    """One method. At any time one λ is tried: with the first seed, and if that learns, with the others.

    The largest λ of the grid comes first; the smallest is only tried if nothing above it learned.
    """

    def __init__(self, grid: Sequence[TrialConfig], precision: float) -> None:
        self.config = min(grid, key=lambda config: config.seed)
        self.seeds = sorted({config.seed for config in grid})
        lams = [config.lam for config in grid if config.lam > 0]
        self._bottom, self._top = min(lams), max(lams)
        self._ratio = 1 + precision
        self._learned_once: float | None = None  # λ at which the first seed learned, and the others are to be tried
        self.low: float | None = None
        self.high: float | None = None
        self.failed = False
        self.tried = 0

    @property
    def at_most(self) -> int:
        """How many trials it may take."""
        apart = math.log(self._top) - math.log(self._bottom)  # the quotient may be no float
        enough = math.log(self._ratio)
        enough = max(enough - _ROUNDED, enough / 2)
        halvings = math.ceil(max(0.0, math.log2(apart / enough)))
        return (2 + halvings) * len(self.seeds)

    def next(self) -> list[TrialConfig] | None:
        """The trials to run now; None if the level is found."""
        lam = None if self.failed else self._lam()
        if lam is None:
            return None
        seeds = self.seeds[1:] if self._learned_once == lam else self.seeds[:1]
        return [replace(self.config, lam=lam, seed=seed) for seed in seeds]

    def _lam(self) -> float | None:
        if self.high is None:
            return None if self.low == self._top else self._top
        low = self._bottom if self.low is None else self.low
        middle = float(f"{math.sqrt(low * self.high):.{_DIGITS}g}")
        if self.high / low > self._ratio and low < middle < self.high:
            return middle
        return self._bottom if self.low is None and self._bottom < self.high else None

    def tell(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """How the trials that `next` gave ended."""
        lam: float = rows[0]["lam"]
        self.tried += len(rows)
        if any(row["status"] == "failed" for row in rows):
            self.failed = True
        elif not all(row["status"] == "finished" for row in rows):
            self.high = lam
        elif self._learned_once != lam and len(self.seeds) > 1:
            self._learned_once = lam
        else:
            self.low = lam

    def level(self) -> Level:
        """What was found."""
        if self.failed:
            return Level(self.config, None, None, self.tried)
        return Level(self.config, self.low, self.high, self.tried)


class _Bisections:
    """All methods side by side: what is to be trained next, as it is asked for."""

    def __init__(
        self,
        methods: Sequence[Sequence[TrialConfig]],
        precision: float,
        stored: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self._grid = sum(map(len, methods))
        self._bisections = [_Bisection(grid, precision) for grid in methods]
        self.at_most = sum(each.at_most for each in self._bisections)
        self._rows: dict[str, Mapping[str, Any]] = dict(stored)
        self._waiting: dict[int, list[TrialConfig]] = {}
        self._queue: deque[Wanted] = deque()

    def replay(self) -> int:
        """Go through what the store holds already; returns how many trials that were."""
        self._advance()
        return sum(each.tried for each in self._bisections)

    def next(self) -> Wanted | None:
        """What to train next; None if there is nothing until a trial has ended, or at all (see `finished`)."""
        self._advance()
        return self._queue.popleft() if self._queue else None

    @property
    def finished(self) -> bool:
        """Whether every level is found."""
        return not self._waiting

    def ended(self, row: Mapping[str, Any]) -> None:
        """A trial ended: its row of the store."""
        self._rows[row["trial_id"]] = row

    def outcome(self, statuses: dict[str, int], failures: Sequence[str]) -> ToleranceOutcome:
        """What was found, with what the run counted."""
        return ToleranceOutcome(
            levels=tuple(each.level() for each in self._bisections),
            grid=self._grid,
            statuses=statuses,
            failures=tuple(failures),
        )

    def _advance(self) -> None:
        for number, bisection in enumerate(self._bisections):
            while True:
                configs = self._waiting.get(number)
                if configs is None:
                    configs = bisection.next()
                    if configs is None:
                        break
                    self._waiting[number] = configs
                    if missing := {config.trial_id for config in configs} - self._rows.keys():
                        self._queue.append(Wanted(configs, missing))
                if any(config.trial_id not in self._rows for config in configs):
                    break
                del self._waiting[number]
                bisection.tell([self._rows[config.trial_id] for config in configs])
