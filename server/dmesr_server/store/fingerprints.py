"""What tells whether two reads of vectors would be the same."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .snapshots import Snapshot
from .vector_columns import column_names, source_dims, vector_columns


def fingerprint_of(snapshot: Snapshot, key: tuple[bytes, int, tuple[str, ...]]) -> str:
    """sha256 hex over all ids and some sources' hashes.

    Args:
        snapshot: The version that is read.
        key: Which table it is, its version, and the sources.
    """
    table, _, sources = key
    dims = source_dims(snapshot.schema)
    vector_columns(sources, dims)  # refuses unknown ones
    names = [column_names(source)[1] for source in sources]
    rows = snapshot.select(["item_id", *dict.fromkeys(names)]).combine_chunks()
    rows = rows.take(pc.sort_indices(rows["item_id"]))
    total = hashlib.sha256(repr((table, rows.num_rows, [(source, dims[source]) for source in sources])).encode())
    for column in ("item_id", *names):
        update_with_texts(total, pc.fill_null(rows[column], ""))  # no hash is empty
    return total.hexdigest()


def update_with_texts(total: hashlib._Hash, column: pa.ChunkedArray) -> None:
    """Adds a column to a hash: lengths and then the texts end to end, so that no two columns give the same bytes."""
    texts = column.combine_chunks().cast(pa.large_string())
    total.update(pc.binary_length(texts).cast(pa.int64()).to_numpy().astype("<i8").tobytes())
    total.update(_text_bytes(texts))


def _text_bytes(texts: pa.Array) -> memoryview:
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return memoryview(data)[int(bounds[0]) : int(bounds[-1])] if data is not None else memoryview(b"")
