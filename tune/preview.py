"""What a sweep would run, as a table."""

from collections import defaultdict
from collections.abc import Sequence, Set

from rich.table import Table
from rich.text import Text

from gcsr import TrialConfig
from tune.schema import FAMILY_FIELDS
from tune.words import NONE, float_text, network_texts

__all__ = ["preview"]

_COLUMNS = ("network", "reg.", "mode", "λ", "settings", "seeds", "trials", "to run", "epochs to run")


def preview(trials: Sequence[TrialConfig], missing: Set[str]) -> Table:
    """A row for each network, regularizer and mode.

    Args:
        trials: of the sweep.
        missing: ids of those that have not ended.
    """
    groups: dict[tuple[str, str, str], list[TrialConfig]] = defaultdict(list)
    networks = network_texts([config.to_dict() for config in trials], FAMILY_FIELDS)
    for network, config in zip(networks, trials, strict=True):
        groups[network, config.regularizer, config.mode].append(config)
    table = Table(box=None, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(Text(column), justify="left" if column in _COLUMNS[:4] else "right", overflow="fold")
    for names, group in groups.items():
        left = [config for config in group if config.trial_id in missing]
        seeds = {config.seed for config in group}
        settings = {tuple((config.to_dict() | {"seed": 0}).items()) for config in group}
        numbers = (len(settings), len(seeds), len(group), len(left), sum(config.epochs or 0 for config in left))
        table.add_row(*map(Text, names), Text(_span({config.lam for config in group})), *map(str, numbers))
    return table


def _span(lams: Set[float]) -> str:
    if lams == {0.0}:
        return NONE
    low, high = float_text(min(lams)), float_text(max(lams))
    return low if len(lams) == 1 else f"{len(lams)} from {low} to {high}"
