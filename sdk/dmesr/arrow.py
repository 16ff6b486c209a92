"""Vectors between NumPy and the wire's Arrow IPC streams, with as few copies as the way there allows.

Legend of shape suffixes: N items, D width of a source.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dmesr.errors import MalformedArrow
from dmesr.v1 import embeddings_pb2

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Matrix = npt.NDArray[np.floating[Any]]
    Mask = npt.NDArray[np.bool_]

_DATA_TAG = bytes([embeddings_pb2.ReadEmbeddingsResponse.DESCRIPTOR.fields_by_name["data"].number << 3 | 2])


@dataclass(frozen=True)
class VectorPiece:
    """A `ReadEmbeddingsResponse` whose vectors stay where grpc put them."""

    data: bytes | memoryview
    recipe_id: str = ""
    model: str = ""
    version: int = 0
    rows: int = 0
    fingerprint: str = ""
    unchanged: bool = False

    @classmethod
    def decoded(cls, message: bytes) -> VectorPiece:
        """Reads a serialised message.

        All but the first hold one field. That one is found by hand: protobuf would copy it into its message, and from
        there into the `bytes` that it hands out. Anything else is left to protobuf.
        """
        start = _data_start(message)
        if start is not None:
            return cls(memoryview(message)[start:])
        answer = embeddings_pb2.ReadEmbeddingsResponse.FromString(message)
        return cls(
            data=answer.data,
            recipe_id=answer.recipe_id,
            model=answer.model,
            version=answer.version,
            rows=answer.rows,
            fingerprint=answer.fingerprint,
            unchanged=answer.unchanged,
        )


def _data_start(message: bytes) -> int | None:
    """Where `data` begins when it is all that the message holds: a tag, a length in groups of seven bits, the bytes."""
    if message[:1] != _DATA_TAG:
        return None
    length = 0
    for place, byte in enumerate(message[1:11]):
        length |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            start = place + 2
            return start if start + length == len(message) else None
    return None


def varint(value: int) -> bytes:
    """A number as protobuf writes it: seven bits a byte, the lowest first."""
    low = bytearray()
    while value > 0x7F:
        low.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*low, value))


class VectorReader:
    """Reads the record batches of one or several Arrow IPC streams of one schema, piece by piece, without a copy."""

    def __init__(self) -> None:
        self.schema: pa.Schema | None = None

    def feed(self, data: bytes | memoryview) -> Iterator[pa.RecordBatch]:
        """Takes one piece of a stream: its schema, or whole record batches, which are yielded.

        Raises:
            MalformedArrow: The piece is no Arrow IPC, or does not match what came before.
        """
        import pyarrow as pa

        stream = pa.BufferReader(pa.py_buffer(data))  # no copy: the batches below keep `data` alive
        try:
            while True:
                try:
                    message = pa.ipc.read_message(stream)
                except EOFError:  # the end of the piece, or the stream's own end mark
                    return
                if message.type == "schema":
                    self._declare(pa.ipc.read_schema(message))
                elif self.schema is None:
                    raise MalformedArrow("the server sent vectors before their schema; is it of another version?")
                else:
                    yield pa.ipc.read_record_batch(message, self.schema)
        except (pa.ArrowException, OSError) as error:
            raise MalformedArrow(f"the server's vectors cannot be decoded: {error}") from error

    def _declare(self, schema: pa.Schema) -> None:
        if self.schema is not None and not schema.equals(self.schema):
            raise MalformedArrow(f"the sources changed during the read: {self.schema.names} to {schema.names}")
        self.schema = schema


class VectorCollector:
    """Puts the record batches of one or several Arrow IPC streams into one matrix for each source.

    Copies on the way in: grpc gathers a message from what the socket gave into `bytes`, which cannot be avoided from
    Python. Arrow reads its messages in place. A read that fits in one batch is then used as it lies; otherwise each
    batch is copied once to its place in the whole matrix, so that at no time both exist twice.
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.found_N: Mask | None = None
        self.vectors: dict[str, Matrix] = {}
        self.present: dict[str, Mask] = {}
        self._reader = VectorReader()
        self._rows = 0

    def expect(self, rows: int) -> None:
        """Says how many rows there will be in all, before the first is fed."""
        self._rows = rows

    def rewind(self, rows: int) -> None:
        """Forgets all but the first rows: a call is made again."""
        del self.ids[rows:]
        if rows == 0:
            self._reader = VectorReader()
            self.found_N = None
            self.vectors.clear()
            self.present.clear()

    def feed(self, data: bytes | memoryview) -> None:
        """Takes one piece of a stream: its schema, or whole record batches.

        Raises:
            MalformedArrow: The piece is no Arrow IPC, or does not match what came before.
        """
        for batch in self._reader.feed(data):
            self._declare()
            self._take(batch)
        self._declare()

    def _declare(self) -> None:
        import numpy as np
        import pyarrow as pa

        schema = self._reader.schema
        if schema is None or self.found_N is not None:
            return
        self.found_N = np.zeros(self._rows, dtype=np.bool_)
        for field in schema:
            if pa.types.is_fixed_size_list(field.type):
                self.vectors[field.name] = _matrix(self._rows, field.type)
                self.present[field.name] = np.zeros(self._rows, dtype=np.bool_)

    def _take(self, batch: pa.RecordBatch) -> None:
        assert self.found_N is not None
        start, stop = len(self.ids), len(self.ids) + batch.num_rows
        if stop > self._rows:
            raise MalformedArrow(f"the server announced {self._rows} rows and sent {stop} or more")
        self.ids.extend(batch.column("item_id").to_pylist())
        self.found_N[start:stop] = batch.column("found").to_numpy(zero_copy_only=False)
        for name in self.vectors:
            column = batch.column(name)
            matrix_nD = in_place(column)
            if column.null_count:
                present_n = column.is_valid().to_numpy(zero_copy_only=False)
                self.present[name][start:stop] = present_n
                self.vectors[name][start:stop] = matrix_nD
                self.vectors[name][start:stop][~present_n] = 0  # what lies under a null is anything
                continue
            self.present[name][start:stop] = True
            if batch.num_rows == self._rows:
                self.vectors[name] = matrix_nD  # the whole read: as it lies in the message, read-only
            else:
                self.vectors[name][start:stop] = matrix_nD


def _matrix(rows: int, kind: pa.FixedSizeListType) -> Matrix:
    """Room for a column's values [rows, D], whatever they are.

    Of Arrow's allocator, which keeps what is let go of for the next read: the system gives and clears every page anew.
    """
    import numpy as np
    import pyarrow as pa

    dtype = np.dtype(kind.value_type.to_pandas_dtype())
    buffer = pa.allocate_buffer(rows * kind.list_size * dtype.itemsize)
    return np.frombuffer(buffer, dtype=dtype).reshape(rows, kind.list_size)


def in_place(column: pa.FixedSizeListArray) -> Matrix:
    """The column's values [N, D] where they lie."""
    import numpy as np

    width = column.type.list_size
    dtype = np.dtype(column.type.value_type.to_pandas_dtype())
    if len(column) == 0:
        return np.empty((0, width), dtype=dtype)
    values = column.values
    # Through the buffer, not `values.to_numpy`: some writers mark the values under a null row as null as well.
    return np.frombuffer(
        values.buffers()[1],
        dtype=dtype,
        count=len(column) * width,
        offset=(values.offset + column.offset * width) * dtype.itemsize,
    ).reshape(len(column), width)


class _Parts:
    """What Arrow's writer writes to: it keeps the buffers as they are handed over, so nothing is copied yet."""

    closed = False

    def __init__(self) -> None:
        self.written: list[Any] = []

    def write(self, part: Any) -> int:
        self.written.append(part)
        return len(part)

    def flush(self) -> None:
        """There is nothing to wait for."""

    def close(self) -> None:
        """There is nothing to let go of."""


def encode_vectors(ids: Sequence[str], columns: Mapping[str, Matrix]) -> list[Any]:
    """One batch as a whole Arrow IPC stream: the columns `item_id` and those given, in buffers to be put end to end.

    Copies on the way out: rows that do not lie one after the other are gathered; whoever makes the message puts the
    buffers end to end, since grpc takes only `bytes`. The caller's matrix itself is never copied as a whole.
    """
    import numpy as np
    import pyarrow as pa

    arrays = [pa.array(ids, pa.string())]
    for vectors_ND in columns.values():
        values = pa.array(np.ascontiguousarray(vectors_ND).reshape(-1))  # a view where the rows lie together
        arrays.append(pa.FixedSizeListArray.from_arrays(values, vectors_ND.shape[1]))
    batch = pa.record_batch(arrays, names=["item_id", *columns])
    parts = _Parts()
    with pa.ipc.new_stream(pa.PythonFile(parts, mode="w"), batch.schema) as writer:
        writer.write_batch(batch)
    return parts.written


def to_table(ids: Sequence[str], found_N: Mask, vectors: dict[str, Matrix], present: dict[str, Mask]) -> pa.Table:
    """The vectors as a table: `item_id`, `found`, and a nullable fixed-size list for each source. Copies no vector."""
    import pyarrow as pa

    columns: dict[str, pa.Array] = {"item_id": pa.array(ids, pa.string()), "found": pa.array(found_N)}
    for name, matrix_ND in vectors.items():
        columns[name] = pa.FixedSizeListArray.from_arrays(
            pa.array(matrix_ND.reshape(-1)), matrix_ND.shape[1], mask=pa.array(~present[name])
        )
    return pa.table(columns)
