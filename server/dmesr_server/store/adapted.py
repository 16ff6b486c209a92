"""The `adapted_<model>` tables: what a model's item tower made of each item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .database import Database, encoded
from .items import RowOutcome
from .snapshots import Snapshot
from .vector_columns import SourceColumn, source_dims
from .vectors import VectorTable

PREFIX = "adapted_"
#: The one source of an adapted table.
VECTOR = "vector"
_BATCH_BYTES = 64 << 20  # of vectors, read at a time


@dataclass(frozen=True)
class AdaptedSnapshot:
    """One version of a model's vectors.

    Attributes:
        version: The version; 0 when nothing was ever written.
        rows: N.
        dim: V; 0 when it is not known yet.
        snapshot: What is read.
    """

    version: int
    rows: int
    dim: int
    snapshot: Snapshot

    def ids(self) -> pa.LargeStringArray:
        """The items, in no particular order."""
        return self.snapshot.select(["item_id"])["item_id"].cast(pa.large_string()).combine_chunks()

    def batches(self) -> Iterator[tuple[pa.LargeStringArray, np.ndarray]]:
        """Items and their vectors [B, V] float32, a bounded number of bytes at a time, in no particular order."""
        column = f"vector_{VECTOR}"
        for batch in self.snapshot.batches(["item_id", column], rows=max(1, _BATCH_BYTES // (4 * self.dim))):
            yield (
                batch.column("item_id").cast(pa.large_string()),
                batch.column(column).flatten().to_numpy(zero_copy_only=False).reshape(-1, self.dim),
            )


class AdaptedTable(VectorTable):
    """The adapted vectors of one model. N items, V width of the model's item vector."""

    def __init__(self, *, database: Database, model_key: str, dim: int | None = None):
        """Names the table.

        Args:
            database: Where it lives.
            model_key: What tells the model from all others of the catalog.
            dim: V; None takes the width of the first vectors written.

        Raises:
            ServiceError: DIMENSION_MISMATCH when there are vectors of another width.
        """
        super().__init__(database=database, name=PREFIX + encoded(model_key), dims={} if dim is None else {VECTOR: dim})
        self.model_key = model_key
        if dim is not None:
            self.declare(VECTOR, dim)

    @property
    def dim(self) -> int:
        """The width V; 0 when it is not known yet."""
        return self.sources().get(VECTOR, 0)

    def upsert(  # type: ignore[override]
        self, item_ids: Sequence[str], vectors: np.ndarray, input_hashes: Sequence[str]
    ) -> list[RowOutcome]:
        """Writes vectors; rows with the same input hash are not written again.

        Args:
            item_ids: N ids.
            vectors: [N, V] float32.
            input_hashes: Hash of what each vector was made from.

        Raises:
            ServiceError: DIMENSION_MISMATCH, NON_FINITE_VECTOR, STORE_FULL or STORE_UNAVAILABLE; nothing was written.
        """
        self.declare(VECTOR, vectors.shape[1])
        present_N = np.ones(len(item_ids), dtype=bool)
        return super().upsert(item_ids, {VECTOR: SourceColumn(vectors, present_N, list(input_hashes))})

    def frozen(self) -> AdaptedSnapshot:
        """The newest version, to read in several steps."""
        snapshot = self.snapshot()
        dim = source_dims(snapshot.schema).get(VECTOR, 0)
        return AdaptedSnapshot(
            version=snapshot.version,
            rows=snapshot.count() if dim else 0,
            dim=dim,
            snapshot=snapshot,
        )

    def input_hashes(self) -> pa.Table:
        """`item_id` and `input_hash` of every item, in no particular order."""
        if not self.dim:
            return pa.table({"item_id": pa.array([], pa.string()), "input_hash": pa.array([], pa.string())})
        return self._table.select(["item_id", f"hash_{VECTOR}"]).rename_columns(["item_id", "input_hash"])

    def read_all(self) -> tuple[list[str], np.ndarray]:
        """Ids in order, and their vectors [N, V] float32."""
        dim = self.dim
        if not dim:
            return [], np.zeros((0, 0), np.float32)
        rows = self._table.select(["item_id", f"vector_{VECTOR}"]).combine_chunks()
        rows = rows.take(pc.sort_indices(rows["item_id"])).combine_chunks()
        if not rows.num_rows:
            return [], np.zeros((0, dim), np.float32)
        vectors: pa.FixedSizeListArray = rows[f"vector_{VECTOR}"].chunk(0)
        return rows["item_id"].to_pylist(), vectors.flatten().to_numpy().reshape(-1, dim)
