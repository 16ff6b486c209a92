"""Vectors as they cross the wire.

Out: one Arrow IPC stream, cut into gRPC messages. In: a whole Arrow IPC stream in each message.

Shapes: N rows, D width of a source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dmesr_server.errors import ServiceError, invalid_field

MESSAGE_BYTES = 1024 * 1024  # about what one message carries
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


@dataclass(frozen=True)
class WireSource:
    """A source as it is asked for."""

    name: str
    dim: int


class VectorStream:
    """Cuts record batches of the store into the pieces of one Arrow IPC stream."""

    def __init__(self, sources: Sequence[WireSource], *, half: bool):
        """Settles the schema.

        Args:
            sources: The columns, in order.
            half: float16 instead of float32.
        """
        self._names = [source.name for source in sources]
        value = pa.float16() if half else pa.float32()
        self.schema = pa.schema(
            [
                pa.field("item_id", pa.string(), nullable=False),
                pa.field("found", pa.bool_(), nullable=False),
                *(pa.field(source.name, pa.list_(value, source.dim)) for source in sources),
            ]
        )
        self.batch_bytes = 2 * MESSAGE_BYTES if half else MESSAGE_BYTES  # of float32, as the store counts

    def head(self) -> bytes:
        """The first piece: the schema."""
        return bytes(self.schema.serialize().to_pybytes())

    def pieces(self, batch: pa.RecordBatch | pa.Table) -> Iterator[bytes]:
        """The pieces of one batch, each a whole record batch of the stream.

        Args:
            batch: About `batch_bytes` large. Columns `item_id`, the sources as fixed-size lists of float32, and `found`
                where rows may be missing.
        """
        columns = []
        for column in self.schema:
            if column.name == "found" and "found" not in batch.schema.names:
                found = pa.array(np.ones(batch.num_rows, bool))
                columns.append(found)
                continue
            # Copy 1, only for float16: otherwise the buffers are handed on.
            columns.append(_cast(batch.column(column.name), column.type))
        whole = pa.Table.from_arrays(columns, schema=self.schema)
        for part in (part for batch in whole.to_batches() for part in _small_enough(batch)):  # slices: no copy
            # Copy 2: the IPC encoding lays the slice's buffers out one after the other.
            # Copy 3: from Arrow's buffer to the bytes object that protobuf wants. protobuf copies those into its
            # message (copy 4) and serialises them for gRPC (copy 5). Each is one memcpy of 1 MiB.
            yield part.serialize().to_pybytes()

    @staticmethod
    def tail() -> bytes:
        """The last piece: the stream's end."""
        return _END_OF_STREAM


def _small_enough(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch, halved as often as it takes: long ids or wide vectors can make it larger than was reckoned."""
    if batch.nbytes <= 2 * MESSAGE_BYTES or batch.num_rows < 2:
        yield batch
    else:
        half = batch.num_rows // 2
        yield from _small_enough(batch.slice(0, half))
        yield from _small_enough(batch.slice(half))


def _cast(column: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    if column.type == kind:
        return column
    if isinstance(column, pa.ChunkedArray):
        return pa.chunked_array([_cast(chunk, kind) for chunk in column.chunks], type=kind)
    if pa.types.is_fixed_size_list(kind) and pa.types.is_fixed_size_list(column.type):
        # `values` ignores the slice, so it is cut by hand; null rows keep their slots in it.
        size = kind.list_size
        values = column.values.slice(column.offset * size, len(column) * size)
        if values.type != kind.value_type:
            # Through NumPy: it rounds to nearest even and turns what is too large into infinity without an error.
            with np.errstate(over="ignore"):
                values = pa.array(values.to_numpy(zero_copy_only=False).astype(kind.value_type.to_pandas_dtype()))
        mask = pc.is_null(column) if column.null_count else None
        return pa.FixedSizeListArray.from_arrays(values, type=kind, mask=mask)
    return column.cast(kind)


@dataclass(frozen=True, eq=False)
class WrittenVectors:
    """The rows of one WriteEmbeddings message.

    Attributes:
        ids: One for each row; None where it was null.
        vectors_ND: float32; zeros where absent.
        absent_N: Rows whose vector is null.
    """

    ids: list[str | None]
    vectors_ND: np.ndarray
    absent_N: np.ndarray

    def hashes(self) -> list[str]:
        """sha256 of each row's little-endian float32 bytes."""
        return [hashlib.sha256(row.astype("<f4", copy=False).tobytes()).hexdigest() for row in self.vectors_ND]


def parse(data: bytes) -> WrittenVectors:
    """Reads the Arrow IPC stream of one message.

    Raises:
        ServiceError: MALFORMED_ARROW or UNSUPPORTED_DTYPE.
    """
    try:
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:  # points into the message: no copy
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, EOFError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ServiceError(
            "MALFORMED_ARROW",
            f"data is no whole Arrow IPC stream of at least a schema: {why}; send what a stream writer wrote, closed",
        ) from error
    names = table.schema.names
    if sorted(names) != ["item_id", "vector"]:
        raise ServiceError(
            "MALFORMED_ARROW",
            f"data must have the columns item_id and vector, got {names}",
            expected="item_id, vector",
            actual=", ".join(names),
        )
    ids, vectors = table.column("item_id").combine_chunks(), table.column("vector").combine_chunks()
    if not (pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)):
        raise ServiceError(
            "MALFORMED_ARROW", f"item_id must be utf8, got {ids.type}", column="item_id", actual=str(ids.type)
        )
    kind = vectors.type
    if not pa.types.is_fixed_size_list(kind) or kind.value_type not in (pa.float32(), pa.float16()):
        raise ServiceError(
            "UNSUPPORTED_DTYPE",
            f"vector must be a fixed-size list of float32 or float16, got {kind}; convert it before writing",
            column="vector",
            expected="fixed_size_list<float32 or float16>",
            actual=str(kind),
        )
    if kind.list_size < 1:
        raise ServiceError("DIMENSION_MISMATCH", "vector must be at least 1 wide, got 0", expected=">= 1", actual=0)
    absent_N = vectors.is_null().to_numpy(zero_copy_only=False).astype(bool)
    values = vectors.values.slice(vectors.offset * kind.list_size, len(vectors) * kind.list_size)
    vectors_ND = values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, kind.list_size)
    vectors_ND[absent_N] = 0.0
    return WrittenVectors(ids=ids.to_pylist(), vectors_ND=vectors_ND, absent_N=absent_N)


def query_vector(data: bytes, *, dim: int) -> np.ndarray:
    """The packed little-endian float32 vector of a query, float32 [D].

    Raises:
        ServiceError: INVALID_FIELD, DIMENSION_MISMATCH or NON_FINITE_VECTOR.
    """
    if len(data) % 4:
        raise invalid_field("vector", f"must be packed float32, 4 bytes a number, got {len(data)} bytes")
    vector_D = np.frombuffer(data, "<f4").astype(np.float32)
    if len(vector_D) != dim:
        raise ServiceError(
            "DIMENSION_MISMATCH",
            f"the vector has {len(vector_D)} numbers, the source has {dim}; send a vector of that source",
            expected=dim,
            actual=len(vector_D),
        )
    if not np.isfinite(vector_D).all():
        raise ServiceError("NON_FINITE_VECTOR", "the vector holds NaN or infinity; send finite numbers")
    return vector_D
