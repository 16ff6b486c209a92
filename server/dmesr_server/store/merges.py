"""Putting rows into a LanceDB table: merged by their key, or appended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ..chunks import one_array
from .indexes import pays_for_merge


@dataclass(frozen=True)
class Merged:
    """What a merge did, in rows."""

    inserted: int
    updated: int


def merge(handle: Any, whole: pa.Table, *, key: str, condition: str | None, update: bool) -> Any:
    """Inserts rows and replaces those of the same key; what LanceDB tells of it.

    Args:
        handle: The LanceDB table.
        whole: What :func:`whole_rows` made. Keys must be unique.
        key: The column of the key.
        condition: Replace only where this holds.
        update: False leaves rows alone that are there already.
    """
    builder = handle.merge_insert(key).use_index(pays_for_merge(handle, key)).when_not_matched_insert_all()
    if update:
        builder = builder.when_matched_update_all(where=condition)
    # LanceDB looks for NaN in every vector of a fixed width: a dozen steps of Python for each piece of a column, each
    # of which waits for its lock while other threads work. That took two thirds of a merge under load. Lists it casts,
    # without a copy.
    lists = [_as_lists(column) for column in whole.columns]
    fields = [field.with_type(column.type) for field, column in zip(whole.schema, lists, strict=True)]
    return builder.execute(pa.table(lists, schema=pa.schema(fields)))


def append(handle: Any, whole: pa.Table) -> Any:
    """Puts rows that :func:`whole_rows` made behind those that are there; what LanceDB tells of it."""
    return handle.add(whole, write_parallelism=1)  # one fragment, in the order of the rows


def _as_lists(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece: vectors as lists of any length, others as they are."""
    array = one_array(column)
    if not pa.types.is_fixed_size_list(array.type):
        return array
    width = array.type.list_size
    numbers = array.values.slice(array.offset * width, len(array) * width)
    offsets = pa.array(np.arange(len(array) + 1, dtype=np.int64) * width)
    return pa.LargeListArray.from_arrays(offsets, numbers, mask=array.is_null() if array.null_count else None)


def whole_rows(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with every column of the table: lance must not be given some columns of a row alone.

    That is slow, since it rewrites these columns for every row of the fragments touched, and it panics once the key's
    index covers a part of the table.
    """
    columns = [
        rows[field.name] if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type) for field in schema
    ]
    return pa.table(columns, names=schema.names).cast(schema)
