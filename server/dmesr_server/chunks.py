"""Arrow's chunked columns as one array."""

from __future__ import annotations

import pyarrow as pa


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """A column's values as one array; copied only where it has several. Arrow's `combine_chunks` always copies."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
