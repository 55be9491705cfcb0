"""What ending collapsed trials early would have saved, and whether it would have ended others, on stored curves."""

import sys
from collections import Counter

from rich.console import Console
from rich.table import Table

from gcsr import load_dataset
from gcsr.collapse import WINDOW, constant_loss, has_collapsed
from gcsr.records import EpochRecord
from tune.store import Store


def main(location: str) -> None:
    """Print one row for each status of a digits sweep that ran without early ends."""
    store = Store(location)
    loss = constant_loss(load_dataset("digits").train_labels)
    curves: dict[str, list[EpochRecord]] = {}
    for row in store.epochs().to_table().sort_by([("trial_id", "ascending"), ("epoch", "ascending")]).to_pylist():
        curves.setdefault(row.pop("trial_id"), []).append(EpochRecord(**row))
    trials, stopped, saved, epochs = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for row in store.read_trials().table.to_pylist():
        status, records = row["status"], curves[row["trial_id"]]
        trials[status] += 1
        epochs[status] += len(records)
        for end in range(WINDOW + 1, len(records)):
            if has_collapsed(records[:end], loss):
                stopped[status] += 1
                saved[status] += len(records) - end
                break
    table = Table("status", "trials", "would have been ended", "epochs", "saved", title=f"Early ends in {location}")
    for status in sorted(trials):
        numbers = (trials[status], stopped[status], epochs[status], saved[status])
        table.add_row(status, *map(str, numbers))
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1])
