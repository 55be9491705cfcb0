"""A sweep from spec to store: what is missing is run, every outcome is stored at once."""

from collections.abc import Set
from dataclasses import dataclass

from gcsr import TrialConfig
from tune.compaction import ended_rows, take_up
from tune.events import TimeLimit
from tune.manifest import note_run
from tune.recorder import RunOutcome
from tune.run_options import RunOptions
from tune.runs import check_machine, check_unused, job_of, open_executor, recording
from tune.spec import SweepSpec
from tune.store import Store
from tune.terminal import complain
from tune.words import counted

__all__ = ["SweepOutcome", "SweepPreview", "preview_sweep", "run_sweep"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepOutcome(RunOutcome):
    """How a sweep ended.

    Attributes:
        total: trials of the spec.
        left: how many the time limit left for another call.
    """

    total: int
    left: int


@dataclass(frozen=True, slots=True)
class SweepPreview:
    """What `run_sweep` would run.

    Attributes:
        trials: of the spec.
        missing: ids of those of them that have not ended, or failed.
    """

    trials: tuple[TrialConfig, ...]
    missing: frozenset[str]


def preview_sweep(spec: SweepSpec, store: Store, options: RunOptions) -> SweepPreview:
    """Look up what `run_sweep` would run. Nothing is started, and nothing written.

    Raises:
        InvalidInputError: the spec, the data or the store cannot be used.
    """
    trials = spec.trials()
    check_unused(store, options)
    check_machine(trials, options, spec.workers)
    ended = ended_rows(store)["trial_id"].to_pylist()
    return SweepPreview(tuple(trials), frozenset(config.trial_id for config in trials).difference(ended))


def run_sweep(spec: SweepSpec, store: Store, options: RunOptions) -> SweepOutcome:
    """Run what the store lacks of the spec's trials.

    Trials that failed are run again; all others are kept. Safe to kill at any moment: calling it again with
    ``resume`` ends in the same table.

    Raises:
        InvalidInputError: the spec, the data or the store cannot be used; nothing was started.
    """
    trials = spec.trials()
    check_unused(store, options)
    check_machine(trials, options, spec.workers)
    job = job_of(spec, store, options)
    with store.exclusive():
        ended = set(take_up(store)["trial_id"].to_pylist())
        others = ended - {config.trial_id for config in trials}
        missing = [config for config in trials if config.trial_id not in ended]
        if not missing:
            if store.read_manifest() is None:
                note_run(store, spec, job, trials=[config.trial_id for config in trials])
            _say_what_else_is_there(store, others)
            return SweepOutcome(total=len(trials), left=0, statuses={}, failures=())
        # The executor refuses what can never run before the store is touched.
        with open_executor(store, job, options, missing) as executor:
            cutter = executor.cutter
            note_run(store, spec, cutter.job, missing, trials=[config.trial_id for config in trials])
            _say_what_else_is_there(store, others)
            work = cutter.cut(trials, {config.trial_id for config in missing})
            ended_before = len(trials) - len(missing)
            with recording(
                store,
                spec,
                options,
                total=len(trials),
                stored=ended,
                slots=cutter.slots,
                at_once=cutter.at_once(work),
                ended_before=ended_before,
            ) as recorder:
                executor.run(work, recorder)
                recorder.wait()
                left = len(missing) - sum(recorder.statuses.values())
                if left:
                    recorder.noticed(TimeLimit(left=left))
            return SweepOutcome(
                total=len(trials), left=left, statuses=recorder.statuses, failures=tuple(recorder.failures)
            )


def _say_what_else_is_there(store: Store, others: Set[str]) -> None:
    # Another spec's folder, or a field that was set otherwise: nothing of it would be seen until the report.
    if others:
        stay = "it stays in its report" if len(others) == 1 else "they stay in its report"
        complain(f"gcsr: {store.location} holds {counted(len(others), 'trial')} that this spec does not name; {stay}")
