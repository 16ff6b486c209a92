"""Vectors as they come in by the wire: a whole Arrow IPC stream in each message.

Shapes: N rows, D width of a source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dmesr_server.api import validation
from dmesr_server.chunks import one_array
from dmesr_server.errors import ServiceError, invalid_field

_ALONE = "vector"  # the column of a message that names its one source


@dataclass(frozen=True, eq=False)
class WrittenVectors:
    """The rows of one WriteEmbeddings message. They lie where protobuf put them: nothing was copied.

    Attributes:
        ids: utf8, one for each row; null where it was null.
        columns: By source, N fixed-size lists of float32.
    """

    ids: pa.StringArray
    columns: Mapping[str, pa.FixedSizeListArray]

    @property
    def widths(self) -> dict[str, int]:
        """D of each source."""
        return {source: column.type.list_size for source, column in self.columns.items()}

    def matrix(self, source: str) -> npt.NDArray[np.float32]:
        """A source's numbers where they lie, float32 [N, D]; anything where a row is null."""
        column = self.columns[source]
        width = column.type.list_size
        numbers: npt.NDArray[np.float32] = _numbers(column).to_numpy(zero_copy_only=False)
        return numbers.reshape(len(column), width)

    def hashes(self, source: str) -> list[str]:
        """sha256 of each row's little-endian float32 bytes."""
        matrix_ND = np.ascontiguousarray(self.matrix(source), "<f4")
        numbers = memoryview(matrix_ND.data).cast("B")
        width = 4 * matrix_ND.shape[1]
        return [hashlib.sha256(numbers[at : at + width]).hexdigest() for at in range(0, len(numbers), width)]


def parse(data: bytes, *, source: str) -> WrittenVectors:
    """Reads the Arrow IPC stream of one message.

    Args:
        data: The stream.
        source: The source that the column `vector` holds; where empty, each column is the source of its name.

    Raises:
        ServiceError: INVALID_FIELD for the name of a source, MALFORMED_ARROW, UNSUPPORTED_DTYPE or DIMENSION_MISMATCH.
    """
    if source:
        validation.source_name(source)
    table = _table(data)
    names = [name for name in table.schema.names if name != "item_id"]
    if source and names == [_ALONE] and "item_id" in table.schema.names:
        named = {_ALONE: source}
    elif source or not names or len(names) != table.num_columns - 1 or len(set(names)) != len(names):
        raise ServiceError(
            "MALFORMED_ARROW",
            "data must have the columns item_id and vector, or, where no source is named, item_id and one for each "
            f"source by its name; got {table.schema.names}",
            expected="item_id, vector",
            actual=", ".join(table.schema.names),
        )
    elif names == [_ALONE]:
        raise invalid_field("source", "is empty: name the source that the column vector holds")
    else:
        named = {name: validation.source_name(name) for name in names}
    ids = one_array(table.column("item_id"))
    if not (pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)):
        raise ServiceError(
            "MALFORMED_ARROW", f"item_id must be utf8, got {ids.type}", column="item_id", actual=str(ids.type)
        )
    columns = {source: _column(table, name) for name, source in named.items()}
    return WrittenVectors(ids=ids.cast(pa.string()), columns=columns)


def _table(data: bytes) -> pa.Table:
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
    return table


def _column(table: pa.Table, name: str) -> pa.FixedSizeListArray:
    column = one_array(table.column(name))  # copies only where a message holds several batches
    kind = column.type
    if not pa.types.is_fixed_size_list(kind) or kind.value_type not in (pa.float32(), pa.float16()):
        raise ServiceError(
            "UNSUPPORTED_DTYPE",
            f"{name} must be a fixed-size list of float32 or float16, got {kind}; convert it before writing",
            column=name,
            expected="fixed_size_list<float32 or float16>",
            actual=str(kind),
        )
    if kind.list_size < 1:
        raise ServiceError("DIMENSION_MISMATCH", f"{name} must be at least 1 wide, got 0", expected=">= 1", actual=0)
    values = _numbers(column)
    if kind == pa.list_(pa.float32(), kind.list_size) and not values.null_count:
        return column
    # float16 is stored as float32; and a number that is null, where its row is not, is none: NaN, which is refused.
    numbers = values.to_numpy(zero_copy_only=False).astype(np.float32)
    mask = column.is_null() if column.null_count else None
    return pa.FixedSizeListArray.from_arrays(pa.array(numbers), kind.list_size, mask=mask)


def _numbers(column: pa.FixedSizeListArray) -> pa.Array:
    """The numbers of all rows, null ones too. `values` knows nothing of a slice, so it is cut by hand."""
    width = column.type.list_size
    return column.values.slice(column.offset * width, len(column) * width)
