"""The index of a table's key: when a merge should look its keys up in it, and making it anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lancedb.index import BTree

# Through the index, lance also reads every row that the index does not cover yet, with all its columns: at 6 kB a row,
# 8,000 such rows took 330 ms and 150 MB, every merge anew. Without it, it reads the keys alone: 50 ms here, 270 ms of
# a million rows, where a complete index takes 35 ms.
_COVERED_PER_UNCOVERED = 100


@dataclass(frozen=True)
class Coverage:
    """What an index holds, in rows of its table."""

    covered: int
    uncovered: int


def pays_for_merge(handle: Any, column: str) -> bool:
    """Whether the index of a column covers so much of a table that a merge by that column is quicker through it."""
    told = coverage(handle, column)
    return told is not None and told.covered >= _COVERED_PER_UNCOVERED * told.uncovered


def coverage(handle: Any, column: str) -> Coverage | None:
    """What the index of a column covers; None where there is none."""
    told = handle.index_stats(f"{column}_idx")
    return None if told is None else Coverage(int(told.num_indexed_rows), int(told.num_unindexed_rows))


def make_index(handle: Any, column: str, *, replace: bool) -> None:
    """Makes the index of a column.

    Args:
        handle: The LanceDB table.
        column: The column.
        replace: In the place of the one that is there; else there must be none.
    """
    handle.create_index(column, config=BTree(), replace=replace)
