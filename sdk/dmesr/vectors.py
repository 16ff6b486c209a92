"""What reads and writes of vectors take and give: matrices with their ids and masks.

Legend of shape suffixes: N items, D width of a source.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmesr.arguments import id_list
from dmesr.arrow import encode_vectors, to_table
from dmesr.errors import InvalidInput

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa
    import torch

    from dmesr.arrow import Mask, Matrix


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors of items, one matrix for each source.

    Attributes:
        ids: The N item ids, in the order asked for.
        found: bool [N]: False where the table has no row for the id.
        recipe_id: The recipe behind the vectors.
        model: The model that adapted them, "name:version"; None for a recipe's own vectors.
        version: The version of the table that was read.
    """

    ids: list[str]
    found: Mask
    recipe_id: str
    model: str | None
    version: int
    _vectors: dict[str, Matrix]
    _present: dict[str, Mask]

    @property
    def sources(self) -> tuple[str, ...]:
        """The names that :meth:`matrix` takes."""
        return tuple(self._vectors)

    def _known(self, source: str) -> str:
        if source not in self._vectors:
            raise InvalidInput(f"no source {source!r} in what was read; there is {', '.join(self.sources) or 'none'}")
        return source

    def matrix(self, source: str) -> Matrix:
        """The vectors of one source, [N, D], float32 or float16; rows of items without a vector are zeros.

        No copy is made, and what was read in one message is not even writable; `.copy()` it to change it.

        Raises:
            InvalidInput: The source was not read.
        """
        return self._vectors[self._known(source)]

    def present(self, source: str) -> Mask:
        """Which items have a vector of that source, bool [N].

        Raises:
            InvalidInput: The source was not read.
        """
        return self._present[self._known(source)]

    def to_arrow(self) -> pa.Table:
        """A table with `item_id`, `found` and each source as a fixed-size list, null where absent. Shares memory."""
        return to_table(self.ids, self.found, self._vectors, self._present)

    def to_parquet(self, path: Path | str) -> None:
        """Writes :meth:`to_arrow` to a Parquet file."""
        import pyarrow.parquet as pq

        pq.write_table(self.to_arrow(), str(path))

    def to_torch(self, source: str) -> torch.Tensor:
        """The vectors of one source as a tensor [N, D]. Shares memory with :meth:`matrix` where that is writable.

        Raises:
            InvalidInput: The source was not read.
        """
        import torch

        matrix_ND = self.matrix(source)
        # torch has no read-only tensors.
        return torch.from_numpy(matrix_ND if matrix_ND.flags.writeable else matrix_ND.copy())

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        widths = ", ".join(f"{name} [{len(self)}, {matrix.shape[1]}]" for name, matrix in self._vectors.items())
        return f"<Embeddings {widths}; {self.model or f'recipe {self.recipe_id}'}, version {self.version}>"


def checked(
    item_ids: Sequence[str], vectors: npt.ArrayLike, *, source: str, width: int | None
) -> tuple[list[str], Matrix]:
    """The ids and vectors of one batch, fit to be sent.

    Args:
        item_ids: N ids.
        vectors: [N, D], float32 or float16.
        source: The source, for the message.
        width: D of the batches before; None for the first.

    Raises:
        InvalidInput: Another number of dimensions, number format, length or width; the message names ids and shapes.
    """
    import numpy as np

    ids = id_list(item_ids, name="item_ids")
    matrix = np.asarray(vectors)
    batch = f"source {source!r}, items {ids[0]!r} to {ids[-1]!r}" if ids else f"source {source!r}, no items"
    if matrix.ndim != 2:
        raise InvalidInput(f"{batch}: vectors have shape {matrix.shape}; expected two dimensions, ({len(ids)}, D)")
    if matrix.dtype not in (np.float32, np.float16):
        raise InvalidInput(
            f"{batch}: vectors of shape {matrix.shape} are {matrix.dtype}; expected float32 or float16 in native byte "
            "order: convert them with .astype(np.float32)"
        )
    if len(matrix) != len(ids):
        raise InvalidInput(
            f"{batch}: {len(ids)} item ids, but vectors of shape {matrix.shape}; expected one row for each id"
        )
    if width is not None and matrix.shape[1] != width:
        raise InvalidInput(
            f"{batch}: vectors of shape {matrix.shape}, but the batches before are {width} wide; a source has one width"
        )
    if matrix.shape[1] == 0:
        raise InvalidInput(f"{batch}: vectors of shape {matrix.shape} hold no numbers; expected a width of 1 or more")
    return ids, matrix


def streams_of(
    ids: Sequence[str], columns: Mapping[str, Matrix], *, max_rows: int, max_bytes: int
) -> Iterator[list[Any]]:
    """Cuts a batch into Arrow IPC streams of at most about `max_bytes`, each as buffers to be put end to end."""
    longest_id = max((len(item_id.encode(errors="surrogatepass")) for item_id in ids), default=0)
    numbers = sum(matrix.shape[1] for matrix in columns.values())
    row_bytes = longest_id + 8 + sum(matrix.shape[1] * matrix.dtype.itemsize for matrix in columns.values())
    rows = min(max_rows, max_bytes // row_bytes)
    if rows == 0:
        raise InvalidInput(
            f"one vector of width {numbers} has {row_bytes} bytes with its id; one message takes {max_bytes}"
        )
    for start in range(0, len(ids), rows):
        part = slice(start, start + rows)
        try:
            yield encode_vectors(ids[part], {name: matrix_ND[part] for name, matrix_ND in columns.items()})
        except UnicodeEncodeError as error:
            raise InvalidInput(f"an item id is no valid Unicode text: {error}") from error


def query_vector(vector: npt.ArrayLike) -> bytes:
    """A vector [D] as packed little-endian float32.

    Raises:
        InvalidInput: It has another number of dimensions, or no numbers.
    """
    import numpy as np

    array: npt.NDArray[Any] = np.asarray(vector)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "fiu":
        raise InvalidInput(f"vector has shape {array.shape} and is {array.dtype}; expected one row of numbers, (D,)")
    return array.astype("<f4").tobytes()
