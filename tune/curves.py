"""Mean curves over epochs (Figures 2, 3 and 8) of a few settings, streamed from the store."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from gcsr.names import MODES
from tune.aggregate import MEMORY, best_setting
from tune.filesystem import one_line
from tune.store import Store
from tune.summary import Setting, Summary

__all__ = ["Curve", "Curves", "chosen_settings", "epoch_means", "read_curves"]

_MAX_POINTS = 400  # epochs of a curve; more are thinned out evenly
_MAX_PER_GROUP = 8  # settings of one network and regularizer: more cannot be told apart
_AVERAGES = "avg(train_loss), avg(grad_abs_mean), avg(weight_abs_mean), avg(pi)"
_UNREADABLE = (duckdb.Error, OSError, ValueError)  # Arrow's errors too, and names in a file that are no text


@dataclass(frozen=True, slots=True)
class Curve:
    """A setting over epochs; every sequence has one value an epoch, the mean over its seeds."""

    setting: Setting
    epoch: tuple[int, ...]
    train_loss: tuple[float | None, ...]
    grad_abs_mean: tuple[float | None, ...]
    weight_abs_mean: tuple[float | None, ...]
    pi: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Curves:
    """What is in ``epochs/``.

    Attributes:
        curves: of the settings that have epochs there.
        damaged: one line for each file that could not be read, naming it.
    """

    curves: tuple[Curve, ...]
    damaged: tuple[str, ...]


def chosen_settings(summary: Summary) -> list[Setting]:
    """The settings whose curves tell the story: each mode's best, and each at the λ where the baseline collapses."""
    chosen: list[Setting] = []
    groups: dict[str, list[Setting]] = {}
    for setting in summary.settings:
        if setting.n:
            groups.setdefault(repr((setting.recipe, setting.regularizer)), []).append(setting)
    for group in groups.values():
        wanted: dict[int, Setting] = {}
        baseline = [s for s in group if s.mode == "baseline"]
        collapsed = [s for s in baseline if s.stopped]
        edge = min(collapsed, key=lambda s: s.lam, default=None)
        for mode in MODES:
            of_mode = [s for s in group if s.mode == mode]
            at_edge = [s for s in of_mode if edge is not None and s.lam == edge.lam]
            wanted |= {id(s): s for s in (best_setting(of_mode), *at_edge[:2]) if s is not None}
        chosen += list(wanted.values())[:_MAX_PER_GROUP]
    return chosen


def epoch_means(
    store: Store, owners: pa.Table, *, files: list[str] | None = None, memory: str = MEMORY
) -> duckdb.DuckDBPyRelation:
    """Mean loss, |∇L|, |w| and π of every setting at every epoch, ordered by both; streamed from the store's files.

    Args:
        store: the store.
        owners: ``trial_id`` and ``setting`` (int64) of the trials to take in.
        files: of `Store.epoch_files`; None for all.
        memory: what DuckDB may use while it groups, as ``"1GB"``; beyond it spills to disk.
    """
    connection = _connected(store, store.epoch_files() if files is None else files, memory)
    connection.register("given", owners)
    connection.execute("create temp table owners as from given")  # with statistics, for the order of the join
    return connection.sql(
        f"""select setting, epoch, {_AVERAGES}
            from epochs join owners using (trial_id) group by setting, epoch order by setting, epoch"""
    )


def _connected(store: Store, files: list[str], memory: str = MEMORY) -> duckdb.DuckDBPyConnection:
    """DuckDB with the view ``epochs`` of these files."""
    connection = duckdb.connect(config={"memory_limit": memory})
    if store.is_local and files:
        connection.read_parquet(files).create_view("epochs")  # DuckDB's own reader is faster than one through Arrow
    else:
        connection.register("epochs", store.epochs(files))
    return connection


def read_curves(store: Store, settings: Sequence[Setting]) -> Curves:
    """The curves of these settings; settings without epochs in the store have none.

    Complete also while another process merges files: what it takes away is in its place already.
    """
    owners = [(trial_id, number) for number, setting in enumerate(settings) for trial_id in setting.trial_ids]
    of = pa.table(
        {
            "trial_id": pa.array([o[0] for o in owners], pa.string()),
            "setting": pa.array([o[1] for o in owners], pa.int64()),
        }
    )
    rows, damaged = _readable_means(store, of) if owners else ([], ())
    found = []
    for number, setting in enumerate(settings):
        own = [row[1:] for row in rows if row[0] == number]
        step = -(-len(own) // _MAX_POINTS) if own else 1
        if own:
            found.append(Curve(setting, *(tuple(column) for column in zip(*own[::step], strict=True))))
    return Curves(tuple(found), damaged)


def _readable_means(store: Store, owners: pa.Table) -> tuple[list[tuple[Any, ...]], tuple[str, ...]]:
    """`epoch_means` of the files that can be read, and a line for each that cannot.

    Files are looked at one by one only if all together cannot be read.
    """
    damaged: dict[str, str] = {}
    while True:
        files = [file for file in store.epoch_files() if file not in damaged]
        try:
            return epoch_means(store, owners, files=files).fetchall(), tuple(damaged.values())
        except _UNREADABLE:
            unread = {file: problem for file in files if (problem := _problem(store, file)) is not None}
            there = set(store.epoch_files())
            if not unread and there.issuperset(files):
                raise  # it is no file's fault
            damaged |= {file: problem for file, problem in unread.items() if file in there}


def _problem(store: Store, file: str) -> str | None:
    """Why a file of epochs cannot be read, naming it; None if it can."""
    try:
        _connected(store, [file]).sql(f"select max(hash(trial_id, epoch)), {_AVERAGES} from epochs").fetchall()
    except _UNREADABLE as error:
        return f"{file} is damaged: {one_line(error)}"
    return None
