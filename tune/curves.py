"""Mean curves over epochs (Figures 2, 3 and 8) of a few settings, streamed from the store."""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from tune.aggregate import MEMORY, Setting, Summary
from tune.store import Store

__all__ = ["Curve", "chosen_settings", "epoch_means", "read_curves"]

_MAX_POINTS = 400  # epochs of a curve; more are thinned out evenly
_MAX_PER_GROUP = 8  # settings of one network and regularizer: more cannot be told apart


@dataclass(frozen=True, slots=True)
class Curve:
    """A setting over epochs; every sequence has one value an epoch, the mean over its seeds."""

    setting: Setting
    epoch: tuple[int, ...]
    train_loss: tuple[float | None, ...]
    grad_abs_mean: tuple[float | None, ...]
    weight_abs_mean: tuple[float | None, ...]
    pi: tuple[float | None, ...]


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
        collapsed = [s for s in baseline if not s.learned]
        edge = min(collapsed, key=lambda s: s.lam, default=None)
        for mode in ("none", "baseline", "ours", "ours_orig"):
            of_mode = [s for s in group if s.mode == mode and s.accuracy_mean is not None]
            best = max(of_mode, key=lambda s: (s.selection or 0.0, -s.lam), default=None)
            at_edge = [s for s in of_mode if edge is not None and s.lam == edge.lam]
            wanted |= {id(setting): setting for setting in (best, *at_edge[:2]) if setting is not None}
        chosen += list(wanted.values())[:_MAX_PER_GROUP]
    return chosen


def epoch_means(store: Store, owners: pa.Table, *, memory: str = MEMORY) -> duckdb.DuckDBPyRelation:
    """Mean loss, |∇L|, |w| and π of every setting at every epoch, ordered by both; streamed from the store's files.

    Args:
        store: the store.
        owners: ``trial_id`` and ``setting`` (int64) of the trials to take in.
        memory: what DuckDB may use while it groups, as ``"1GB"``; beyond it spills to disk.
    """
    connection = duckdb.connect(config={"memory_limit": memory})
    connection.register("given", owners)
    connection.execute("create temp table owners as from given")  # with statistics, for the order of the join
    files = store.epoch_files()
    if store.is_local and files:
        connection.read_parquet(files).create_view("epochs")  # DuckDB's own reader is faster than one through Arrow
    else:
        connection.register("epochs", store.epochs())
    return connection.sql(
        """select setting, epoch, avg(train_loss), avg(grad_abs_mean), avg(weight_abs_mean), avg(pi)
           from epochs join owners using (trial_id) group by setting, epoch order by setting, epoch"""
    )


def read_curves(store: Store, settings: Sequence[Setting]) -> list[Curve]:
    """The curves of these settings; settings without epochs in the store have none."""
    owners = [(trial_id, number) for number, setting in enumerate(settings) for trial_id in setting.trial_ids]
    of = pa.table(
        {
            "trial_id": pa.array([o[0] for o in owners], pa.string()),
            "setting": pa.array([o[1] for o in owners], pa.int64()),
        }
    )
    rows = epoch_means(store, of).fetchall() if owners else []
    found = []
    for number, setting in enumerate(settings):
        own = [row[1:] for row in rows if row[0] == number]
        step = -(-len(own) // _MAX_POINTS) if own else 1
        if own:
            found.append(Curve(setting, *(tuple(column) for column in zip(*own[::step], strict=True))))
    return found
