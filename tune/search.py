"""A search: Optuna suggests settings, the trials of a setting are its seeds, every outcome is stored at once.

Deterministic, however many trials run at once: setting number k is suggested when the settings up to k − window have
ended, and from their results alone. So a search that was killed is replayed from the store to where it was, and ends
in the same table as one that was not. What was suggested is noted in the store before a trial of it runs, and stays: a
trial that failed gives another result when it is tried again, and other drivers' results come when they come.
"""

import math
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from gcsr import InvalidInputError, TrialConfig
from tune.compaction import take_up
from tune.lines import Line, labels, lines_of
from tune.manifest import note_run
from tune.pareto import unbeaten
from tune.recorder import RunOutcome
from tune.row_source import Wanted, run_source
from tune.run_options import RunOptions
from tune.runs import check_machine, check_unused, end_at_once, job_of, open_executor, recording
from tune.search_identity import (
    SearchIdentity,
    asked_definition,
    known_identity,
    known_suggestions,
    write_identity,
    write_suggestions,
)
from tune.search_spec import Objective, Pruner, objective_means
from tune.spec import SweepSpec
from tune.store import Store
from tune.study import LineStudy, StudyStorage, should_prune, storage_failures

__all__ = ["Best", "SearchOutcome", "run_search", "settings_of_lines"]

Row = Mapping[str, Any]
_JOURNAL = "study.journal"


class Best(NamedTuple):
    """The best setting of a line; with two objectives, one that no other beats in both."""

    label: str
    params: dict[str, Any]
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchOutcome(RunOutcome):
    """How a search ended.

    Attributes:
        total: trials of all its settings.
        best: of every line that has one; with two objectives, its Pareto front from the best by the first one on.
        saved_epochs: epochs that were not trained because a trial had collapsed, in the whole search.
    """

    total: int
    best: tuple[Best, ...]
    saved_epochs: int


def run_search(
    spec: SweepSpec,
    store: Store,
    options: RunOptions,
    *,
    trials: int,
    window: int | None,
    storage: str | None,
    refit: bool,
) -> SearchOutcome:
    """Search until so many trials have ended.

    Args:
        spec: what to search; its grid says between what.
        store: as for a sweep; trials that it holds already are not run again.
        options: as for a sweep.
        trials: how many trainings; a setting takes one for each seed.
        window: at most so many settings at once; None for one more than run at once when the search starts.
        storage: of Optuna; None for a journal in the store, if that is a local folder.
        refit: train each line's best setting, by the first objective, once more, on all training images; these
            trials come on top.

    Raises:
        InvalidInputError: the spec, the data, the store or the storage cannot be used; nothing was started.
        OSError: the store or the storage failed.
    """
    lines = lines_of(spec.spaces(), spec.search)
    counts = settings_of_lines(lines, trials)
    check_unused(store, options)
    lowest = [config for line in lines for config in line.configs(line.lowest())]
    check_machine(lowest, options, spec.workers)
    job = job_of(spec, store, options)
    with storage_failures(), store.exclusive():
        stored = {row["trial_id"]: row for row in take_up(store).to_pylist()}
        definition = asked_definition(lines, spec, options)
        identity = known_identity(store, window, definition)
        if storage is not None:
            StudyStorage(storage)  # refused before anything starts

        def replayed(identity: SearchIdentity) -> _Search:
            search = _Search(
                store=store,
                lines=lines,
                counts=counts,
                identity=identity,
                studies=_studies(lines, spec, identity, store, storage),
                objectives=spec.search.objectives,
                stored=stored,
                pruner=spec.search.pruner,
                refit=refit,
            )
            search.replay()
            return search

        planned = _planned(lines, counts, refit=refit)
        search = None if identity is None else replayed(identity)
        if search is not None and search.finished and not search.missing_refits():
            end_at_once(store, spec, job, options, lowest, planned=planned)
            return search.outcome({}, ())
        with open_executor(store, job, options, lowest) as executor:
            cutter = executor.cutter
            if identity is None:
                identity = SearchIdentity(uuid.uuid4().hex, definition, window or cutter.slots + 1, frozenset(stored))
                write_identity(store, identity)
            note_run(store, spec, cutter.job, lowest, planned=planned)
            search = search or replayed(identity)
            with recording(
                store,
                spec,
                options,
                total=planned,
                stored=stored.keys(),
                slots=cutter.slots,
                at_once=cutter.at_once(cutter.cut(lines[0].configs(lines[0].lowest()))),
                ended_before=search.ended_before,
                at_most=spec.search.pruner is not None or any(line.is_finite for line in lines),
            ) as recorder:
                run_source(executor, search, recorder)
                executor.run(cutter.cut(search.refits(), search.missing_refits()), recorder)
            return search.outcome(recorder.statuses, recorder.failures)


class _Setting:
    """One suggestion under way: the trials of all its seeds."""

    def __init__(self, line: int, index: int, configs: Sequence[TrialConfig]) -> None:
        self.line, self.index, self.configs = line, index, configs
        self.rows: dict[str, Row] = {}
        self.told_before = 0  # how many settings had been told when it was suggested
        self.pruned = False

    @property
    def complete(self) -> bool:
        return self.pruned or len(self.rows) == len(self.configs)

    @property
    def measured(self) -> bool:
        """Whether no trial diverged in its first epoch."""
        return all(row["status"] == "failed" or row["test_accuracy"] is not None for row in self.rows.values())

    def of_seeds(self, objective: Objective) -> dict[int, float]:
        """The objective of each seed that has ended and did not fail, by its place among the seeds."""
        rows = [self.rows.get(config.trial_id) for config in self.configs]
        return {n: row[objective] or 0.0 for n, row in enumerate(rows) if row and row["status"] != "failed"}

    def values(self, objectives: Sequence[Objective]) -> tuple[float, ...] | None:
        """Each objective's mean over the seeds, as `objective_means` has it."""
        return objective_means(list(self.rows.values()), objectives)


class _Search:
    """What is to be trained next, as it is asked for."""

    def __init__(
        self,
        *,
        store: Store,
        lines: Sequence[Line],
        counts: Sequence[int],
        identity: SearchIdentity,
        studies: Sequence[LineStudy],
        objectives: Sequence[Objective],
        stored: Mapping[str, Row],
        pruner: Pruner | None,
        refit: bool,
    ) -> None:
        self._lines, self._studies, self._objectives = lines, studies, objectives
        self._pruner, self._refit = pruner, refit
        self._store, self._identity, self._stored = store, identity, stored
        self._noted = sum(len(study.suggested) for study in studies)
        # One setting of every line before the next: all lines are equally far whenever one looks.
        self._order = [n for round_ in range(max(counts)) for n, count in enumerate(counts) if round_ < count]
        self._settings: list[_Setting] = []
        self._told = 0
        self._of_trial: dict[str, list[_Setting]] = {}
        self._under_way: set[str] = set()
        self._queue: deque[Wanted] = deque()
        self._rows: dict[str, Row] = {}
        for study in studies:
            for params, values in _earlier(study.line, identity.known, stored, objectives):
                study.learn(params, values)

    # -- what a run asks ----------------------------------------------------------------------------------------

    def next(self) -> Wanted | None:
        """What to train next; None if there is nothing until a trial has ended, or at all (see `finished`)."""
        self._advance()
        return self._queue.popleft() if self._queue else None

    @property
    def finished(self) -> bool:
        """Whether every trial has ended, refits apart."""
        return len(self._settings) == len(self._order) and all(each.complete for each in self._settings)

    # -- how it goes on ------------------------------------------------------------------------------------------

    def replay(self) -> None:
        """Go through what the store holds already."""
        self._advance()

    @property
    def ended_before(self) -> int:
        """How many of the run's trials the store held; asked after `replay`."""
        refits = {config.trial_id for config in self.refits()} if self.finished else set()  # else none is known yet
        return len(self._rows) + len(refits & self._stored.keys() - self._rows.keys())

    def ended(self, row: Row) -> None:
        """A trial ended: its row of the store."""
        self._rows[row["trial_id"]] = row
        for setting in self._of_trial.get(row["trial_id"], []):
            if not setting.pruned:  # else it is the seed of an equal one that goes on, which a replay would not count
                setting.rows[row["trial_id"]] = row
                self._go_on(setting)

    def _advance(self) -> None:
        """Suggest every setting that may be suggested now, and note what was suggested before it can run."""
        while len(self._settings) < len(self._order) and self._settle():
            self._open()
        suggested = [study.suggested for study in self._studies]
        if sum(map(len, suggested)) > self._noted:
            write_suggestions(self._store, self._identity, suggested)
            self._noted = sum(map(len, suggested))

    def _settle(self) -> bool:
        """Tell the settings that the next suggestion waits for, if all have ended; whether they have."""
        settled = max(self._told, len(self._settings) - self._identity.window + 1)
        waited_for = self._settings[self._told : settled]
        if not all(setting.complete for setting in waited_for):
            return False
        for setting in waited_for:
            self._studies[setting.line].tell(setting.index, setting.values(self._objectives))
        self._told = settled
        return True

    def _open(self) -> None:
        number = self._order[len(self._settings)]
        line, study = self._lines[number], self._studies[number]
        configs = line.configs(study.ask())
        setting = _Setting(number, sum(each.line == number for each in self._settings), configs)
        self._settings.append(setting)
        setting.told_before = self._told
        for config in configs:
            self._of_trial.setdefault(config.trial_id, []).append(setting)
        self._go_on(setting)

    def _go_on(self, setting: _Setting) -> None:
        """Take what has ended, and queue what is next of the setting: a seed at a time if it may be pruned."""
        for config in setting.configs:
            row = self._rows.get(config.trial_id) or self._stored.get(config.trial_id)
            if row is not None:
                setting.rows[config.trial_id] = self._rows[config.trial_id] = row
                if self._pruner is not None and len(setting.rows) < len(setting.configs) and self._loses(setting):
                    setting.pruned = True
                    break
            elif self._pruner is not None:
                self._queue_missing([config])
                break
        else:
            self._queue_missing(setting.configs)
        if setting.complete:
            statuses = [setting.rows[c.trial_id]["status"] for c in setting.configs if c.trial_id in setting.rows]
            about = {"statuses": statuses, "trial_ids": list(setting.rows), **self._lines[setting.line].fixed}
            values = setting.values(self._objectives)
            seeds = list(setting.of_seeds(self._objectives[0]).values()) if setting.pruned else None
            self._studies[setting.line].keep(setting.index, values, about, pruned_after=seeds)

    def _queue_missing(self, configs: Sequence[TrialConfig]) -> None:
        """Queue the trials of a setting that neither ended nor are under way."""
        missing = {config.trial_id for config in configs} - self._rows.keys() - self._under_way
        if missing:
            self._queue.append(Wanted(configs, missing))
        self._under_way |= missing

    def _loses(self, setting: _Setting) -> bool:
        assert self._pruner is not None
        told = self._settings[: setting.told_before]
        history = [each.of_seeds(self._objectives[0]) for each in told if each.line == setting.line and not each.pruned]
        return should_prune(self._pruner, [h for h in history if h], setting.of_seeds(self._objectives[0]))

    def best(self) -> Iterator[Best]:
        """The best setting of each line, or its Pareto front."""
        names = labels(self._lines)
        for line in self._lines_ended():
            for setting, values in _front(line):
                fields = setting.configs[0].to_dict()
                space = self._lines[setting.line].space
                yield Best(names[setting.line], {name: fields[name] for name in space}, values)

    def refits(self) -> list[TrialConfig]:
        """The trials of each line's best setting, by the first objective, without hold-out; none if not asked for."""
        if not self._refit:
            return []
        best = (_front(line)[0][0] for line in self._lines_ended())
        return [replace(config, holdout=0.0) for setting in best for config in setting.configs]

    def missing_refits(self) -> set[str]:
        """Ids of the refits that are to be trained."""
        return {config.trial_id for config in self.refits()} - self._stored.keys() - self._rows.keys()

    def outcome(self, statuses: dict[str, int], failures: Sequence[str]) -> SearchOutcome:
        """How the search ended, with what the run counted."""
        return SearchOutcome(
            total=len(self._rows.keys() | {config.trial_id for config in self.refits()}),
            statuses=statuses,
            failures=tuple(failures),
            best=tuple(self.best()),
            saved_epochs=_saved_epochs(self._rows),
        )

    def _lines_ended(self) -> Iterator[list[tuple[_Setting, tuple[float, ...]]]]:
        """Of each line the settings that have ended, and what they reached; no line without any."""
        for number in range(len(self._lines)):
            ended = [s for s in self._settings if s.line == number and s.complete and not s.pruned]
            reached = ((setting, setting.values(self._objectives)) for setting in ended)
            found = [(setting, values) for setting, values in reached if values is not None]
            if found:
                yield found


def _planned(lines: Sequence[Line], counts: Sequence[int], *, refit: bool) -> int:
    """How many trials there will be at most: some settings may be pruned, or suggested twice."""
    # Without hold-out the best were trained on all images already.
    again = [refit and bool(line.fixed.get("holdout")) for line in lines]
    return sum((counts[n] + again[n]) * len(line.seeds) for n, line in enumerate(lines))


def _front(found: Sequence[tuple[_Setting, tuple[float, ...]]]) -> list[tuple[_Setting, tuple[float, ...]]]:
    """The settings that no other beats, from the best by the first objective on; of one objective the best alone.

    Those with a trial that diverged in its first epoch come last, as in the report.
    """
    ordered = sorted(found, key=lambda each: (each[0].measured, each[1]), reverse=True)
    if len(ordered[0][1]) == 1:
        return ordered[:1]
    front = unbeaten(ordered, lambda each: each[1])
    # A sampler may suggest a setting twice.
    return [each for k, each in enumerate(front) if each[0].configs not in (same.configs for same, _ in front[:k])]


def settings_of_lines(lines: Sequence[Line], trials: int) -> list[int]:
    """How many settings each line gets of a budget of trials: as equal as can be, the first lines the rest.

    Raises:
        InvalidInputError: some get none.
    """
    counts, left = [0] * len(lines), trials
    while True:
        opened = False
        for number, line in enumerate(lines):
            if len(line.seeds) <= left:
                counts[number] += 1
                left -= len(line.seeds)
                opened = True
        if not opened:
            break
    if not all(counts):
        needed = sum(len(line.seeds) for line in lines)
        raise InvalidInputError(
            f"trials: {trials} is not allowed; expected at least {needed}, a setting of every seed for each of "
            f"{', '.join(labels(lines))}"
        )
    return counts


def _earlier(
    line: Line, known: frozenset[str], stored: Mapping[str, Row], objectives: Sequence[Objective]
) -> Iterator[tuple[dict[str, Any], list[float]]]:
    """Settings of the line that the store held, with all their seeds, before the search began."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for trial_id in sorted(known & stored.keys()):
        row = stored[trial_id]
        groups.setdefault(tuple(row[name] for name in line.space), []).append(row)
    for values, rows in groups.items():
        params: dict[str, Any] = dict(zip(line.space, values, strict=True))
        if "gamma" in params:
            if not str(params["gamma"]).isdecimal():
                continue
            params["gamma"] = int(params["gamma"])
        if None in params.values():
            continue
        wanted = {config.trial_id for config in line.configs(params)}
        found = [row for row in rows if row["trial_id"] in wanted]
        if len(found) == len(wanted) and all(row[name] is not None for row in found for name in objectives):
            yield params, [math.fsum(row[name] for row in found) / len(found) for name in objectives]


def _studies(
    lines: Sequence[Line], spec: SweepSpec, identity: SearchIdentity, store: Store, storage: str | None
) -> list[LineStudy]:
    kept: StudyStorage | None = None
    if storage is not None:
        kept = StudyStorage(storage)
    elif store.is_local:
        kept = StudyStorage.journal(Path(store.path(_JOURNAL)))
    suggested = known_suggestions(store, identity, lines)
    return [
        LineStudy(
            line,
            spec.search.objectives,
            (spec.search.sampler, spec.search.sampler_seed + number),
            experiment=spec.experiment,
            driver=identity.driver,
            suggested=suggested[number],
            storage=kept,
        )
        for number, line in enumerate(lines)
    ]


def _saved_epochs(rows: Mapping[str, Row]) -> int:
    return sum(
        row["epochs"] - row["epochs_run"]
        for row in rows.values()
        if row["status"] == "collapsed" and row["epochs_run"] is not None
    )
