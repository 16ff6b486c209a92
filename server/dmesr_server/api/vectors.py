"""Vectors as they leave by the wire: one Arrow IPC stream, cut into gRPC messages; and those of queries.

Shapes: N rows, D width of a source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from dmesr.v1 import embeddings_pb2 as pb

from dmesr_server.errors import ServiceError, invalid_field

# About what one message carries. A message costs both ends some work whatever its size: at 1 MiB a client took half as
# much again for a read. At 4 MiB clients with gRPC's usual limit would take none.
MESSAGE_BYTES = 3 * 1024 * 1024
_MOST_BYTES = MESSAGE_BYTES * 5 // 4
_DATA_FIELD = pb.ReadEmbeddingsResponse.DESCRIPTOR.fields_by_name["data"].number


@dataclass(frozen=True)
class WireSource:
    """A source as it is asked for."""

    name: str
    dim: int


class _Parts:
    """What Arrow's writer writes to: it keeps the buffers as they are handed over, so nothing is copied yet."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[Any] = []

    def write(self, part: Any) -> int:
        self._parts.append(part)
        return len(part)

    def flush(self) -> None:
        """There is nothing to wait for."""

    def close(self) -> None:
        """There is nothing to let go of."""

    def taken(self) -> list[Any]:
        """What came since the last time."""
        parts, self._parts = self._parts, []
        return parts


class VectorStream:
    """Cuts record batches of the store into the messages of one Arrow IPC stream.

    From the file to the socket each vector is copied by:
    1. Lance, which decodes pages into Arrow's buffers (and once more by `ordered` in the store, where the rows of a
       step do not lie in order of their id);
    2. `_cast`, for float16 only: it is another number;
    3. `_message`, which lays the buffers of a batch out one after the other. grpc takes nothing but one `bytes`;
    4. grpc, into a slice of its own, and the kernel, into the socket.
    protobuf is not among them: it would copy a field into its message and the message into its output.
    """

    def __init__(self, sources: Sequence[WireSource], *, half: bool):
        """Settles the schema.

        Args:
            sources: The columns, in order.
            half: float16 instead of float32.
        """
        value = pa.float16() if half else pa.float32()
        self.schema = pa.schema(
            [
                pa.field("item_id", pa.string(), nullable=False),
                pa.field("found", pa.bool_(), nullable=False),
                *(pa.field(source.name, pa.list_(value, source.dim)) for source in sources),
            ]
        )
        self.batch_bytes = 2 * MESSAGE_BYTES if half else MESSAGE_BYTES  # of float32, as the store counts
        self._parts = _Parts()
        self._writer = pa.ipc.new_stream(pa.PythonFile(self._parts, mode="w"), self.schema)
        # The writer writes the schema only when the first batch comes. This one calls it forth and is thrown away.
        self._writer.write_batch(pa.RecordBatch.from_pylist([], self.schema))
        self._parts.taken()

    def head(self) -> bytes:
        """The stream's first bytes: the schema."""
        return bytes(self.schema.serialize().to_pybytes())

    def messages(self, batch: pa.RecordBatch | pa.Table) -> Iterator[bytes]:
        """The messages of one batch, each a whole record batch of the stream.

        Args:
            batch: About `batch_bytes` large. Columns `item_id`, the sources as fixed-size lists of float32, and `found`
                where rows may be missing.

        Yields:
            `ReadEmbeddingsResponse` messages, serialised.
        """
        columns = []
        for column in self.schema:
            if column.name == "found" and "found" not in batch.schema.names:
                columns.append(pa.array(np.ones(batch.num_rows, bool)))
            else:
                columns.append(_cast(batch.column(column.name), column.type))
        whole = pa.Table.from_arrays(columns, schema=self.schema)
        for part in (part for batch in whole.to_batches() for part in _small_enough(batch)):  # slices: no copy
            self._writer.write_batch(part)
            yield _message(self._parts.taken())

    def tail(self) -> bytes:
        """The last message: the stream's end."""
        self._writer.close()
        return _message(self._parts.taken())


def _message(parts: Sequence[Any]) -> bytes:
    """A serialised `ReadEmbeddingsResponse` of which only `data` is set: the field's tag, its length, its bytes."""
    return b"".join((_varint(_DATA_FIELD << 3 | 2), _varint(sum(map(len, parts))), *parts))


def _varint(value: int) -> bytes:
    """A number as protobuf writes it: seven bits a byte, the lowest first."""
    low = bytearray()
    while value > 0x7F:
        low.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*low, value))


def _small_enough(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch, halved as often as it takes: long ids or wide vectors can make it larger than was reckoned."""
    if batch.nbytes <= _MOST_BYTES or batch.num_rows < 2:
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


def query_vector(data: bytes, *, dim: int) -> np.ndarray:
    """The packed little-endian float32 vector of a query, float32 [D].

    Raises:
        ServiceError: INVALID_FIELD, DIMENSION_MISMATCH or NON_FINITE_VECTOR.
    """
    if len(data) % 4:
        raise invalid_field("vector", f"must be packed float32, 4 bytes a number, got {len(data)} bytes")
    return checked_query(np.frombuffer(data, "<f4").astype(np.float32), dim=dim)


def checked_query(vector_D: np.ndarray, *, dim: int) -> np.ndarray:
    """A vector to search with, float32 [D].

    Raises:
        ServiceError: DIMENSION_MISMATCH or NON_FINITE_VECTOR.
    """
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
