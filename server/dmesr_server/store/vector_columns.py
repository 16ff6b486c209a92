"""How vectors stand in a table's columns: two for each source, and two that guard against lost updates.

Shapes: N items, D width of a source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ..errors import ServiceError
from .database import decoded, encoded
from .schemas import key_field

HASH = "hash_"
VECTOR = "vector_"
#: Each write stamps its rows with a random number. A writer that fills in the columns that it does not write, from
#: what it read before, replaces a row only if the stamp is still the one that it read.
STAMP = "stamp"
EXPECTED = "expected_stamp"
FIXED_FIELDS = [
    key_field("item_id"),
    pa.field(STAMP, pa.int64(), nullable=False),
    pa.field(EXPECTED, pa.int64(), nullable=False),
]


@dataclass(frozen=True)
class SourceColumn:
    """Vectors of one source to be written.

    Attributes:
        vectors: [N, D] float32; rows that are not present are ignored.
        present: [N] bool; absent rows are stored as null.
        hashes: Hash of what each vector encodes, N of them. None for a present row takes the hash of the vector.
    """

    vectors: np.ndarray
    present: np.ndarray
    hashes: Sequence[str | None]


def column_names(source: str) -> tuple[str, str]:
    """The columns of a source: its vector and its hash."""
    return VECTOR + encoded(source), HASH + encoded(source)


def source_fields(source: str, dim: int) -> list[pa.Field]:
    """The fields of a source."""
    vector, content_hash = column_names(source)
    return [pa.field(vector, pa.list_(pa.float32(), dim)), pa.field(content_hash, pa.string())]


def source_dims(schema: pa.Schema) -> dict[str, int]:
    """The sources of a table and their widths, in the order of their declaration."""
    return {
        decoded(field.name.removeprefix(VECTOR)): field.type.list_size
        for field in schema
        if field.name.startswith(VECTOR)
    }


def vector_columns(sources: Sequence[str], known: Mapping[str, int]) -> list[str]:
    """The vector columns of these sources.

    Raises:
        ServiceError: SOURCE_NOT_FOUND.
    """
    for source in sources:
        if source not in known:
            raise _source_not_found(source, known)
    return [VECTOR + encoded(source) for source in sources]


def rows_of(item_ids: Sequence[str], columns: Mapping[str, SourceColumn], known: Mapping[str, int]) -> pa.Table:
    """What a caller wants written, as columns of the table.

    Raises:
        ServiceError: SOURCE_NOT_FOUND, DIMENSION_MISMATCH or NON_FINITE_VECTOR.
    """
    arrays = {"item_id": pa.array(item_ids, pa.string())}
    for source, column in columns.items():
        if source not in known:
            raise _source_not_found(source, known)
        expected = (len(item_ids), known[source])
        if tuple(column.vectors.shape) != expected:
            raise ServiceError(
                "DIMENSION_MISMATCH",
                f"the vectors of the source {source} have the shape {tuple(column.vectors.shape)}, not {expected}: "
                "write vectors of the declared width, or use another source name",
                source=source,
                expected=known[source],
                actual=column.vectors.shape[-1],
            )
        vectors_ND = np.ascontiguousarray(column.vectors, dtype=np.float32)
        present_N = np.asarray(column.present, dtype=bool)
        bad = np.flatnonzero(present_N & ~np.isfinite(vectors_ND).all(axis=1))
        if bad.size:
            item_id = item_ids[int(bad[0])]
            raise ServiceError(
                "NON_FINITE_VECTOR",
                f"the vector of {item_id} for the source {source} holds NaN or infinity: leave that item out",
                source=source,
                item_id=item_id,
            )
        hashes = [given if there else None for given, there in zip(column.hashes, present_N.tolist(), strict=True)]
        for index in np.flatnonzero(present_N).tolist():
            hashes[index] = hashes[index] or hashlib.sha256(vectors_ND[index].tobytes()).hexdigest()
        vector_name, hash_name = column_names(source)
        values = pa.array(vectors_ND.reshape(-1))
        arrays[vector_name] = pa.FixedSizeListArray.from_arrays(values, expected[1], mask=pa.array(~present_N))
        arrays[hash_name] = pa.array(hashes, pa.string())
    return pa.table(arrays)


def vector_rows(
    ids: pa.StringArray, columns: Mapping[str, pa.FixedSizeListArray], hashes: Mapping[str, Sequence[str]]
) -> pa.Table:
    """As :func:`rows_of`, of Arrow's arrays and without a look at the numbers, which are not copied.

    Args:
        ids: N ids, each once.
        columns: By source, N fixed-size lists of finite float32.
        hashes: By source, the hash of each vector.
    """
    arrays: dict[str, pa.Array] = {"item_id": ids}
    for source, column in columns.items():
        vector_name, hash_name = column_names(source)
        arrays[vector_name] = column
        arrays[hash_name] = pa.array(hashes[source], pa.string())
    return pa.table(arrays)


def _source_not_found(source: str, known: Mapping[str, int]) -> ServiceError:
    names = ", ".join(sorted(known)) or "none yet"
    return ServiceError(
        "SOURCE_NOT_FOUND", f"there is no source {source}; there are: {names}", source=source, sources=names
    )
