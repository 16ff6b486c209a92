"""Rows as a merge takes them."""

from __future__ import annotations

import pyarrow as pa


def whole_rows(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with every column of the table: lance must not be given some columns of a row alone.

    That is slow, since it rewrites these columns for every row of the fragments touched, and it panics once the key's
    index covers a part of the table.
    """
    columns = [
        rows[field.name] if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type) for field in schema
    ]
    return pa.table(columns, names=schema.names).cast(schema)
