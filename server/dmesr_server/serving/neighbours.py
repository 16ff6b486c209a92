"""What is near to a vector: by all vectors, or by the index of a table that has many.

Shapes: N items that have a vector of the source, D width of the source.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from dmesr_server.serving.matrices import Matrices
from dmesr_server.store import CatalogStore, IndexRecord, TableState, VectorIndex, VectorTable

_RECORDS_SECONDS = 5.0  # for how long what is known of a catalog's indexes is believed

#: Which of these items may be found, bool [N].
Allowed = Callable[[pa.LargeStringArray], np.ndarray]


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        neighbours: (item id, cosine), nearest first.
        exact: Whether every vector was compared.
    """

    neighbours: list[tuple[str, float]]
    exact: bool


class Neighbours:
    """Searches the vectors of all catalogs. Safe for any thread; everything blocks."""

    def __init__(self, folder: Path):
        """Makes it; reads nothing.

        Args:
            folder: Where matrices are kept for all processes of this machine.
        """
        self._matrices = Matrices(folder)
        self._records: dict[str, tuple[float, dict[tuple[str, str], IndexRecord]]] = {}

    def close(self) -> None:
        """Lets go of the matrices."""
        self._matrices.close()

    def hand_back(self) -> None:
        """Lets go of the memory that single looks have left behind."""
        self._matrices.hand_back()

    def vector(self, table: VectorTable, source: str, item_id: str, state: TableState) -> np.ndarray | None:
        """The vector of one item, or its unit vector, float32 [D]; None where it has none."""
        kept = self._matrices.here(table, source, state)
        unit_D = None if kept is None else kept.matrix.unit(item_id)
        return table.vector(item_id, source) if unit_D is None else unit_D

    def find(
        self,
        catalog: CatalogStore,
        table: VectorTable,
        source: str,
        vector_D: np.ndarray,
        k: int,
        *,
        state: TableState,
        exclude: Collection[str] = (),
        allowed: Allowed | None = None,
        exact: bool = False,
    ) -> Found:
        """The nearest items by cosine.

        Args:
            catalog: Whose table it is.
            table: Where to search.
            source: Which of its sources.
            vector_D: float32, as wide as the source.
            k: At most so many.
            state: Of the table, as it was seen after the call came in.
            exclude: Items to leave out.
            allowed: Tells which items may be found, before the nearest are taken. Such a search is exact.
            exact: Compare with every vector also where there is an index.
        """
        record = None if exact or allowed is not None else self.record(catalog, table, source)
        if record is not None and np.any(vector_D):
            indexed = self._matrices.indexed(table, source, state)
            if indexed is None:
                found = VectorIndex(table, source).nearest(vector_D, k, effort=record.effort, exclude=exclude)
            else:
                near = functools.partial(indexed.by_index, effort=record.effort)
                found = indexed.matrix.nearest(vector_D, k, exclude=exclude, near=near)
            return Found(found, exact=False)
        kept = self._matrices.whole(table, source, state)
        allowed_N = None if allowed is None else allowed(kept.matrix.ids_N)
        found = kept.matrix.nearest(vector_D, k, exclude=exclude, allowed_N=allowed_N, near=kept.by_codes)
        return Found(found, exact=True)

    def record(self, catalog: CatalogStore, table: VectorTable, source: str) -> IndexRecord | None:
        """What is known of the index of a source; None where there is none."""
        known = self._records.get(table.uri)
        if known is None or known[0] < time.monotonic() - _RECORDS_SECONDS:
            known = self._records[table.uri] = (time.monotonic(), catalog.indexes.all())
        return known[1].get((table.name, source))
