"""Vectors batch by batch, at constant memory: for catalogues that do not fit, and for training loops.

Legend of shape suffixes: B rows of a batch, D width of a source.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from dmesr.arrow import VectorReader, in_place
from dmesr.bridge import EventLoopThread
from dmesr.errors import MalformedArrow

if TYPE_CHECKING:
    import pyarrow as pa
    import torch.utils.data

    from dmesr.arrow import Mask, Matrix


class VectorBatch(NamedTuple):
    """Some rows of a read."""

    ids: list[str]
    matrices: dict[str, Matrix]  # by source: [B, D], rows of items without a vector are zeros
    present: dict[str, Mask]  # by source: bool [B], which items have a vector


class AsyncVectorBatches:
    """A read that is gone through batch by batch, for coroutines."""

    def __init__(self, make: Callable[[], AsyncIterator[VectorBatch]]) -> None:
        self._make = make

    def __aiter__(self) -> AsyncIterator[VectorBatch]:
        """One pass."""
        return self._make()


class VectorBatches:
    """A read that is gone through batch by batch, as often as one likes: each pass reads anew."""

    def __init__(self, core: AsyncVectorBatches, loop: EventLoopThread) -> None:
        self._core = core
        self._loop = loop

    def __iter__(self) -> Iterator[VectorBatch]:
        """One pass. Two batches are read ahead; leaving the loop early ends the call."""
        return self._loop.iterate(self._core.__aiter__, prefetch=2)

    def to_torch(self) -> torch.utils.data.IterableDataset[Any]:
        """The batches as a dataset for `DataLoader(dataset, batch_size=None)`, matrices as tensors.

        Reading happens in the background already, so the loader needs no workers; with some, each would read all.
        """
        import torch.utils.data

        batches = self

        class VectorDataset(torch.utils.data.IterableDataset[Any]):
            def __iter__(self) -> Iterator[Any]:
                if torch.utils.data.get_worker_info() is not None:
                    raise RuntimeError("batches of vectors are read ahead already: use DataLoader(…, num_workers=0)")
                for batch in batches:
                    yield VectorBatch(batch.ids, _tensors(batch.matrices), _tensors(batch.present))

        return VectorDataset()


def _tensors(arrays: dict[str, Any]) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}


class BatchCutter:
    """Cuts the record batches of a stream anew: into batches of a given number of rows, each with memory of its own."""

    def __init__(self, rows: int) -> None:
        """Starts with nothing.

        Args:
            rows: Of each batch; the last one may have fewer.
        """
        self._rows = rows
        self._reader = VectorReader()
        self._batch: VectorBatch | None = None
        self.rows_read = 0

    def feed(self, data: bytes | memoryview) -> Iterator[VectorBatch]:
        """Takes one piece of the stream; yields the batches that are full with it.

        Raises:
            MalformedArrow: The piece is no Arrow IPC, or does not match what came before.
        """
        for piece in self._reader.feed(data):
            start = 0
            while start < piece.num_rows:
                batch = self._batch or self._new(piece)
                taken = min(self._rows - len(batch.ids), piece.num_rows - start)
                _append(batch, piece.slice(start, taken))
                self.rows_read += taken
                start += taken
                self._batch = batch
                if len(batch.ids) == self._rows:
                    self._batch = None
                    yield batch

    def rest(self, expected: int) -> Iterator[VectorBatch]:
        """The last batch, where rows are left over.

        Args:
            expected: Rows that the server announced.

        Raises:
            MalformedArrow: It sent another number.
        """
        if self.rows_read != expected:
            raise MalformedArrow(f"the server sent {self.rows_read} of {expected} rows; read again")
        if self._batch is not None:
            batch, self._batch = self._batch, None
            size = len(batch.ids)
            yield VectorBatch(
                batch.ids,
                {name: matrix[:size] for name, matrix in batch.matrices.items()},
                {name: mask[:size] for name, mask in batch.present.items()},
            )

    def _new(self, piece: pa.RecordBatch) -> VectorBatch:
        import numpy as np

        batch = VectorBatch([], {}, {})
        for field in piece.schema:
            if field.name not in ("item_id", "found"):
                dtype = field.type.value_type.to_pandas_dtype()
                batch.matrices[field.name] = np.zeros((self._rows, field.type.list_size), dtype)
                batch.present[field.name] = np.zeros(self._rows, np.bool_)
        return batch


def _append(batch: VectorBatch, piece: pa.RecordBatch) -> None:
    start = len(batch.ids)
    stop = start + piece.num_rows
    batch.ids.extend(piece.column("item_id").to_pylist())
    for name in batch.matrices:
        column = piece.column(name)
        present_n = column.is_valid().to_numpy(zero_copy_only=False)
        batch.present[name][start:stop] = present_n
        batch.matrices[name][start:stop][present_n] = in_place(column)[present_n]
