"""Statistics of a dataset as people read them."""

from __future__ import annotations

from dmesr.cli.console import print_line, print_table

from dmesr_trainer.datasets.events import Counts
from dmesr_trainer.datasets.paper import PaperRow
from dmesr_trainer.datasets.statistics import Filtered, Statistics


def print_statistics(counted: Statistics, *, paper: PaperRow | None) -> None:
    """Prints Table 1's columns as rows: before the filter, here, and the paper's, and why they differ."""
    columns: dict[str, list[object]] = {}
    if counted.filtered:
        columns["unfiltered"] = _of_counts(counted.filtered.before)
    columns["here"] = _row(counted)
    if paper:
        columns["paper's Table 1"] = _row(paper)
    names = ["users", "items with interactions", "interactions", "mean length", "sparsity"]
    rows = [[name, *(column[row] for column in columns.values())] for row, name in enumerate(names)]
    further = {
        "items in the catalogue": counted.catalogue,
        "with a picture": f"{counted.with_picture:,} ({counted.share_with_picture:.1%})",
    }
    rows += [[name, *(value if column == "here" else None for column in columns)] for name, value in further.items()]
    print_table(["", *columns], rows, right=list(columns))
    if counted.filtered:
        _print_filtered(counted.filtered)
    if paper and _differs(counted, paper):
        print_line(paper.difference)
    if counted.repeats:
        print_line(f"{counted.repeats:,} of the interactions are with an item that the user had before; they are kept.")
    if counted.without_item:
        print_line(f"{counted.without_item:,} items with interactions are not in the catalogue: they have an id alone.")
    if counted.rejected or counted.rejected_interactions:
        print_line(
            f"Left out, as they cannot be used: {counted.rejected:,} rows of the items, "
            f"{counted.rejected_interactions:,} of the interactions."
        )


def _print_filtered(filtered: Filtered) -> None:
    rounds = f" ({filtered.rounds} rounds)" if filtered.rounds > 1 else ""
    print_line(f"Filter: {filtered.rule}{rounds}; days: {filtered.period}.")
    if filtered.equal_rows:
        print_line(f"{filtered.equal_rows:,} rows equal another in user, item and time; they count once.")


def _row(counted: Statistics | PaperRow) -> list[object]:
    return [
        counted.users,
        counted.items,
        counted.interactions,
        f"{counted.mean_length:.2f}",
        f"{counted.sparsity:.2%}",
    ]


def _of_counts(counts: Counts) -> list[object]:
    users, items, events = counts
    if not events:
        return [users, items, events, None, None]
    return [users, items, events, f"{events / users:.2f}", f"{1 - events / (users * items):.2%}"]


def _differs(counted: Statistics, paper: PaperRow) -> bool:
    return (counted.users, counted.items, counted.interactions) != (paper.users, paper.items, paper.interactions)
