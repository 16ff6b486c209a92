"""All vectors of a version in order of their items, at the speed of the files and at bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from .key_order import LiesOtherwiseError, in_order
from .snapshots import Snapshot
from .tables import Table

WINDOW_BYTES = 64 << 20  # of rows that are held because earlier ones are still to come
WHOLE_BYTES = 256 << 20  # up to this much a table in disorder is read whole and ordered in memory
DISORDER = 1 / 64  # share of rows out of order from which a table counts as in disorder
STEP_BYTES = 16 << 20  # otherwise ranges of the key are read, each of this size: slower, since each is looked for


def scanned(
    table: Table, snapshot: Snapshot, columns: Sequence[str], *, schema: pa.Schema, batch_bytes: int
) -> Iterator[pa.RecordBatch]:
    """All rows in order of the table's key.

    Args:
        table: The table.
        snapshot: One version of it.
        columns: What to read; the key is the first.
        schema: What these columns are called and which types they have.
        batch_bytes: About how large a batch is.
    """
    row_bytes = 32 + sum(4 * field.type.list_size for field in schema if pa.types.is_fixed_size_list(field.type))
    batch_rows = max(1, batch_bytes // row_bytes)
    order = table.key_order(snapshot)
    after: str | None = None
    if order.disorder <= DISORDER and order.window * row_bytes <= WINDOW_BYTES:
        try:
            lying = snapshot.batches(columns, rows=batch_rows)
            for batch in _gathered(in_order(lying, order, by=columns[0]), batch_rows):
                yield _named(batch, schema)
            return
        except LiesOtherwiseError as error:
            after = error.after
    step_rows = max(1, STEP_BYTES // (row_bytes * batch_rows)) * batch_rows
    if order.disorder > DISORDER and len(order.keys) * row_bytes <= WHOLE_BYTES:
        step_rows = max(step_rows, len(order.keys))
    for rows in table.ranges(snapshot, columns, rows=step_rows, after=after, gather=False):
        for batch in rows.to_batches(max_chunksize=batch_rows):
            yield _named(batch, schema)


def _gathered(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Puts small batches together, up to so many rows; only what is put together is copied."""
    some: list[pa.RecordBatch] = []
    held = 0
    try:
        for batch in batches:
            if some and held + batch.num_rows > rows:
                yield _one(some)
                some, held = [], 0
            some.append(batch)
            held += batch.num_rows
    except LiesOtherwiseError:
        if some:
            yield _one(some)  # they have been handed on already, as far as the error knows
        raise
    if some:
        yield _one(some)


def _one(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _named(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [column.cast(field.type) for column, field in zip(batch.columns, schema, strict=True)], schema=schema
    )
