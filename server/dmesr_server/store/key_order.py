"""Rows in order of their key, which is not always the order in which they lie.

Shapes: N rows, D width of a vector.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..chunks import one_array
from .schemas import TableState

_PINNING = 0.5  # share of a batch from which rows that wait may keep all of it in memory; fewer are copied


@dataclass(frozen=True, eq=False)
class KeyOrder:
    """The keys of one version of a table.

    Attributes:
        state: Of the table.
        keys: The keys in order of their UTF-8 bytes.
        ranks_N: Which key each row has, as the rows lie; int32. None where they lie in order.
        disorder: Share of rows that stand before a smaller key in the files: 0 when they are in order.
        window: How many rows a reader has to hold, at most, to hand them on in order.
    """

    state: TableState
    keys: pa.Array
    ranks_N: np.ndarray | None
    disorder: float
    window: int


def key_order(stored: pa.Array, *, state: TableState) -> KeyOrder:
    """Finds out how the keys of a table lie.

    Args:
        stored: All of them, as they lie.
        state: Of the table.
    """
    steps_back = pc.sum(pc.greater(stored[:-1], stored[1:])).as_py() if len(stored) > 1 else 0
    if not steps_back:
        return KeyOrder(state, stored, None, 0.0, 0)
    places_N = pc.sort_indices(stored)
    ranks_N = np.empty(len(stored), np.int32)
    ranks_N[places_N.to_numpy()] = np.arange(len(stored), dtype=np.int32)
    # Once the row at `last_N[r]` is read, all of the first r + 1 keys have been.
    last_N = np.maximum.accumulate(places_N.to_numpy())
    read_N = np.arange(1, len(stored) + 1)
    window = int((read_N - np.searchsorted(last_N, read_N - 1, side="right")).max())
    return KeyOrder(state, stored.take(places_N), ranks_N, steps_back / len(stored), window)


class LiesOtherwiseError(Exception):
    """Rows came in another order than that in which their keys did.

    Attributes:
        after: The last key that was handed on; None where none was.
    """

    def __init__(self, after: str | None):
        super().__init__("rows came in another order than their keys")
        self.after = after


def in_order(batches: Iterable[pa.RecordBatch], order: KeyOrder, *, by: str) -> Iterator[pa.RecordBatch]:
    """Hands on rows as they are read, in order of their key. Holds `order.window` rows at most; copies only those.

    Args:
        batches: All rows, as they lie.
        order: Of these rows.
        by: The column of the key.

    Raises:
        LiesOtherwiseError: The rows are not those of the order.
    """
    waiting: list[tuple[int, pa.RecordBatch]] = []  # a heap of runs by the rank of their first row
    read = due = 0
    for batch in batches:
        runs = list(_runs(batch, order, read))
        read += batch.num_rows
        for first, run in runs:
            keys = run.column(by)
            if not keys.equals(order.keys.slice(first, len(keys)).cast(keys.type)):
                raise LiesOtherwiseError(order.keys[due - 1].as_py() if due else None)
            if first != due and run.num_rows < _PINNING * batch.num_rows:
                run = run.take(pa.array(np.arange(run.num_rows)))  # not a slice, which would keep the whole batch
            heapq.heappush(waiting, (first, run))
        while waiting and waiting[0][0] == due:
            run = heapq.heappop(waiting)[1]
            due += run.num_rows
            yield run


def _runs(batch: pa.RecordBatch, order: KeyOrder, read: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Parts of a batch whose keys follow each other, with the rank of their first; slices, not copies."""
    if order.ranks_N is None:
        yield read, batch
        return
    ranks_n = order.ranks_N[read : read + batch.num_rows]
    cuts = [0, *(np.flatnonzero(np.diff(ranks_n) != 1) + 1).tolist(), len(ranks_n)]
    for start, stop in itertools.pairwise(cuts):
        if stop > start:
            yield int(ranks_n[start]), batch.slice(start, stop - start)


def ordered(rows: pa.Table, *, by: str, gather: bool = True) -> pa.Table:
    """The rows in order of a column.

    Args:
        rows: In any order.
        by: The column.
        gather: Without chunks. False leaves the chunks of rows that are in order already.
    """
    keys = one_array(rows[by])
    if len(keys) < 2 or pc.all(pc.less(keys[:-1], keys[1:])).as_py():
        return rows.combine_chunks() if gather else rows
    order_N = pc.sort_indices(keys)
    return pa.table([_in_order(rows[name], order_N) for name in rows.column_names], schema=rows.schema)


def _in_order(column: pa.ChunkedArray, order_N: pa.UInt64Array) -> pa.Array:
    """The values of a column at these places."""
    kind = column.type
    if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32() or column.null_count:
        return one_array(column).take(order_N)
    # Row by row from where the chunks lie, so that they need not be put together first: that would be another copy.
    place_N = np.empty(len(order_N), np.int64)
    place_N[order_N.to_numpy()] = np.arange(len(order_N))
    ordered_ND = np.empty((len(order_N), kind.list_size), np.float32)
    start = 0
    for chunk in column.chunks:
        width = kind.list_size
        numbers = chunk.values.slice(chunk.offset * width, len(chunk) * width).to_numpy(zero_copy_only=False)
        ordered_ND[place_N[start : start + len(chunk)]] = numbers.reshape(-1, width)
        start += len(chunk)
    return pa.FixedSizeListArray.from_arrays(pa.array(ordered_ND.reshape(-1)), type=kind)


def position_after(keys: pa.Array, after: str) -> int:
    """The first position whose key is greater, in an array in order."""
    low, high = 0, len(keys)
    wanted = after.encode()
    while low < high:
        middle = (low + high) // 2
        if keys[middle].as_py().encode() <= wanted:
            low = middle + 1
        else:
            high = middle
    return low
