"""Optuna studies: what suggests the next setting, and where people and other drivers see the results.

The Parquet store is the truth. A study is made anew from it by every run: settings are asked for and told in one fixed
order, so the same results lead to the same suggestions, and a killed search goes on as if nothing had happened. What is
kept in Optuna's storage is a copy: for dashboards, and for other drivers that share it, to learn from.
"""

import contextlib
import itertools
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from gcsr import InvalidInputError
from tune.filesystem import one_line
from tune.lines import Line
from tune.passwords import without_password
from tune.search_spec import Pruner, Sampler

__all__ = ["LineStudy", "StudyStorage", "make_sampler", "should_prune", "storage_failures"]

_DRIVER, _INDEX = "driver", "index"  # user attributes of a stored trial: who asked for it, as which one of its line

warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
optuna.logging.set_verbosity(optuna.logging.ERROR)


def make_sampler(name: Sampler, seed: int) -> BaseSampler:
    """Optuna's sampler of that name."""
    makers: dict[Sampler, Callable[[], BaseSampler]] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, n_startup_trials=5),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed, n_startup_trials=5),
        "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "qmc": lambda: optuna.samplers.QMCSampler(
            seed=seed, scramble=True, warn_independent_sampling=False, warn_asynchronous_seeding=False
        ),
    }
    return makers[name]()


def should_prune(name: Pruner, history: Sequence[Mapping[int, float]], seeds: Mapping[int, float]) -> bool:
    """Whether Optuna's pruner gives a setting up after some of its seeds.

    Args:
        name: of the pruner.
        history: the objective of the seeds of earlier settings, by their place among the seeds.
        seeds: that of the setting's seeds so far.
    """
    pruners: dict[Pruner, Callable[[], BasePruner]] = {
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=3),
        "wilcoxon": lambda: optuna.pruners.WilcoxonPruner(p_threshold=0.1),
    }
    if not seeds:
        return False
    # Wilcoxon's test pairs the seeds; the median is one of running means.
    steps = dict if name == "wilcoxon" else _running_means
    study = optuna.create_study(direction="maximize", pruner=pruners[name]())
    for earlier in history:
        mean = math.fsum(earlier.values()) / len(earlier)
        study.add_trial(create_trial(value=mean, intermediate_values=steps(earlier)))
    trial = study.ask()
    for step, value in steps(seeds).items():
        trial.report(value, step)
    return bool(trial.should_prune())


def _running_means(seeds: Mapping[int, float]) -> dict[int, float]:
    """Of the first, the first two, … seeds that there are."""
    return {n: total / (n + 1) for n, total in enumerate(itertools.accumulate(seeds.values()))}


class StudyStorage:
    """Optuna's storage, written beside the Parquet store.

    Args:
        url: an URL that SQLAlchemy knows (``postgresql+psycopg://…``, ``sqlite:///…``), or the path of a journal file.

    Raises:
        InvalidInputError: it cannot be opened.
    """

    def __init__(self, url: str) -> None:
        if not url:
            raise InvalidInputError("storage: '' is not allowed; expected the URL of a database, or a journal file")
        try:
            self.storage: BaseStorage
            if "://" in url:
                self.storage = RDBStorage(url)
            else:
                lock = JournalFileOpenLock(url)
                _drop_half_line(Path(url), lock)
                _check_journal(Path(url))
                self.storage = JournalStorage(JournalFileBackend(url, lock_obj=lock))
        except Exception as error:  # a driver of any database may raise anything
            raise InvalidInputError(f"storage: {without_password(url)} cannot be opened: {one_line(error)}") from None

    @classmethod
    def journal(cls, path: Path) -> "StudyStorage":
        """The journal of a search's own folder, to which it alone writes.

        A lock that a killed run left is removed, and a journal that cannot be read is begun anew: it is a copy.
        """
        Path(f"{path}.lock").unlink(missing_ok=True)
        try:
            return cls(str(path))
        except InvalidInputError:
            path.unlink(missing_ok=True)
            return cls(str(path))

    def study(self, name: str, objectives: Sequence[str]) -> optuna.Study:
        """The study of that name, made if it is not there."""
        study = optuna.create_study(
            study_name=name, storage=self.storage, directions=["maximize"] * len(objectives), load_if_exists=True
        )
        if study.metric_names != list(objectives):
            study.set_metric_names(list(objectives))
        return study


def _drop_half_line(path: Path, lock: JournalFileOpenLock) -> None:
    """Cut off a last line that a kill or a full disk has left unfinished: the next would be written behind it."""
    if not path.is_file() or path.read_bytes().endswith(b"\n"):
        return
    lock.acquire()  # another search may be in the middle of it
    try:
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    finally:
        lock.release()


def _check_journal(path: Path) -> None:
    """Raise `ValueError` if a whole line of it is no JSON: Optuna finds out once it has written more."""
    if path.exists():
        written = path.read_bytes()
        for line in written[: written.rfind(b"\n") + 1].splitlines():
            json.loads(line)


@contextlib.contextmanager
def storage_failures() -> Iterator[None]:
    """A database that fails in the block is the run's end as a failing disk is: it may be resumed.

    Raises:
        OSError: in place of Optuna's own error.
    """
    try:
        yield
    except StorageInternalError as error:
        raise OSError(f"storage: the database failed: {one_line(error.__cause__ or error)}") from None


class LineStudy:
    """The settings of one line in the order in which they are asked for.

    Args:
        line: what is searched.
        objectives: names of what is maximized.
        sampler: name and seed of Optuna's sampler.
        experiment: first part of the study's name.
        driver: identity of this search; settings of other drivers in the same storage are learned from.
        suggested: what was suggested before; a replay asks for the same.
        storage: where to copy the results; None for nowhere.

    Attributes:
        suggested: the searched fields of every setting, those that a replay has not asked for yet included.
    """

    def __init__(
        self,
        line: Line,
        objectives: Sequence[str],
        sampler: tuple[Sampler, int],
        *,
        experiment: str,
        driver: str,
        suggested: Sequence[dict[str, Any]],
        storage: StudyStorage | None,
    ) -> None:
        self.line = line
        self._study = optuna.create_study(directions=["maximize"] * len(objectives), sampler=make_sampler(*sampler))
        self._driver = driver
        self.suggested = list(suggested)
        self._asked: list[optuna.Trial] = []
        self._seen: set[int] = set()
        self._kept: optuna.Study | None = None
        self._own: dict[int, FrozenTrial] = {}
        if storage is not None:
            self._kept = storage.study(f"{experiment}/{line.label}/{_identity(line, objectives)}", objectives)
            for trial in self._kept.get_trials(deepcopy=False):
                if trial.user_attrs.get(_DRIVER) == driver:
                    self._own[trial.user_attrs[_INDEX]] = trial

    def learn(self, params: dict[str, Any], values: Sequence[float]) -> None:
        """Add a setting that was not asked for: from an earlier sweep, or from another driver."""
        if self.line.contains(params):
            self._study.add_trial(create_trial(params=params, distributions=dict(self.line.space), values=list(values)))

    def ask(self) -> dict[str, Any]:
        """The next setting's searched fields."""
        self._learn_from_others()
        trial = self._study.ask(dict(self.line.space))
        self._asked.append(trial)
        if len(self._asked) > len(self.suggested):
            self.suggested.append(self.line.rounded(trial.params))
        return self.suggested[len(self._asked) - 1]

    def tell(self, index: int, values: Sequence[float] | None) -> None:
        """How setting ``index`` ended; ``values`` is None if every seed failed. Call in the order of the indices."""
        trial, params = self._asked[index], self.suggested[index]
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        if self.line.rounded(trial.params) == params:
            self._study.tell(trial, values=None if values is None else list(values), state=state)
        else:
            self._study.tell(trial, state=TrialState.FAIL)
            if values is not None:
                self.learn(params, values)

    def keep(
        self,
        index: int,
        values: Sequence[float] | None,
        attributes: Mapping[str, Any],
        *,
        pruned_after: Sequence[float] | None = None,
    ) -> None:
        """Copy setting ``index`` to Optuna's storage, once; ``pruned_after`` holds the seeds of one that was pruned."""
        state = TrialState.COMPLETE if pruned_after is None else TrialState.PRUNED
        if values is None:
            state = TrialState.FAIL
        known = self._own.get(index)
        if self._kept is None or (known is not None and known.state == state):
            return
        kept = create_trial(
            params=self.suggested[index],
            distributions=dict(self.line.space),
            values=None if values is None else list(values),
            state=state,
            user_attrs={_DRIVER: self._driver, _INDEX: index, **attributes},
            intermediate_values=dict(enumerate(pruned_after or ())),
        )
        self._kept.add_trial(kept)
        self._own[index] = kept

    def _learn_from_others(self) -> None:
        if self._kept is None:
            return
        for trial in self._kept.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if trial.number not in self._seen and trial.user_attrs.get(_DRIVER) != self._driver:
                self._seen.add(trial.number)
                self.learn(trial.params, trial.values)


def _identity(line: Line, objectives: Sequence[str]) -> str:
    """The same for drivers that search the same, so that strangers who share a storage do not mix."""
    space = {name: distribution_to_json(each) for name, each in line.space.items()}
    parts = [line.fixed, line.seeds, space, objectives]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]
