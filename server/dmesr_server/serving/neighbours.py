"""What is near to a vector: by all vectors, or by the index of a table that has many.

Shapes: N items that have a vector of the source, D width of the source.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from dmesr_server.errors import ServiceError
from dmesr_server.serving.barred import Barred
from dmesr_server.serving.codes import FEW, ItemCodes, codes_of
from dmesr_server.store import CatalogStore, IndexRecord, SourceMatrix, VectorIndex, VectorTable, matrix_of

_LOG = logging.getLogger(__name__)
_KEPT_MATRICES = 32  # mapped at a time; what they take is the file system's cache, not this process's memory
_ASKED_BEFORE_CODES = 3
_CODE_BYTES = 512 << 20  # of this process, for all matrices together
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


class _Kept:
    """A matrix that is searched, and its codes once they are made."""

    def __init__(self, matrix: SourceMatrix):
        self.matrix = matrix
        self.codes: ItemCodes | None = None
        self.asked = 0  # times

    @property
    def code_bytes(self) -> int:
        return 0 if self.codes is None else self.matrix.units.size

    def near(self, unit_D: np.ndarray, k: int, rows_X: np.ndarray, allowed_N: np.ndarray | None) -> np.ndarray | None:
        """Few rows among which the best k are; None where there are no codes, or where they tell too little."""
        codes = self.codes
        if codes is None:
            return None
        (rows_R,) = codes.near(unit_D[None], k, Barred.by_question([rows_X], [allowed_N]))
        return rows_R if len(rows_R) <= max(FEW * len(self.matrix.units), k) else None


class Neighbours:
    """Searches the vectors of all catalogs. Safe for any thread; everything blocks."""

    def __init__(self, folder: Path):
        """Makes it; reads nothing.

        Args:
            folder: Where matrices are kept for all processes of this machine.
        """
        self._folder = folder
        self._lock = threading.Lock()
        self._matrices: OrderedDict[tuple[str, str, str], _Kept] = OrderedDict()
        self._making: dict[tuple[str, str, str], threading.Lock] = {}
        self._records: dict[str, tuple[float, dict[tuple[str, str], IndexRecord]]] = {}
        self._coding = ThreadPoolExecutor(max_workers=1, thread_name_prefix="dmesr-codes")

    def close(self) -> None:
        """Lets go of the matrices."""
        self._coding.shutdown(cancel_futures=True)
        self._matrices.clear()

    def hand_back(self) -> None:
        """Lets go of what searches by codes have looked at; the matrices stay mapped."""
        with self._lock:
            coded = [kept.matrix for kept in self._matrices.values() if kept.codes is not None]
        for matrix in coded:
            matrix.file.hand_back()

    def find(
        self,
        catalog: CatalogStore,
        table: VectorTable,
        source: str,
        vector_D: np.ndarray,
        k: int,
        *,
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
            exclude: Items to leave out.
            allowed: Tells which items may be found, before the nearest are taken. Such a search is exact.
            exact: Compare with every vector also where there is an index.
        """
        record = None if exact or allowed is not None else self.record(catalog, table, source)
        if record is not None and np.any(vector_D):
            index = VectorIndex(table, source)
            return Found(index.nearest(vector_D, k, effort=record.effort, exclude=exclude), exact=False)
        kept = self._kept(table, source)
        allowed_N = None if allowed is None else allowed(kept.matrix.ids_N)
        found = kept.matrix.nearest(vector_D, k, exclude=exclude, allowed_N=allowed_N, near=kept.near)
        return Found(found, exact=True)

    def record(self, catalog: CatalogStore, table: VectorTable, source: str) -> IndexRecord | None:
        """What is known of the index of a source; None where there is none."""
        known = self._records.get(table.uri)
        if known is None or known[0] < time.monotonic() - _RECORDS_SECONDS:
            known = self._records[table.uri] = (time.monotonic(), catalog.indexes.all())
        return known[1].get((table.name, source))

    def _kept(self, table: VectorTable, source: str) -> _Kept:
        """All vectors of a source, as they are now."""
        key = (table.uri, table.name, source)
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:  # many first searches at once make it once
            kept = self._matrices.get(key)
            if kept is None or kept.matrix.version != table.version():
                try:
                    kept = _Kept(matrix_of(table, source, self._folder))
                except ServiceError:
                    self._matrices.pop(key, None)
                    raise
        with self._lock:
            self._matrices[key] = kept
            self._matrices.move_to_end(key)
            while len(self._matrices) > _KEPT_MATRICES:
                old, _ = self._matrices.popitem(last=False)
                self._making.pop(old, None)
            kept.asked += 1
            # Codes take as long as some tens of searches and a quarter of the matrix's memory: not for one that is
            # written over before it is asked again.
            if kept.asked == _ASKED_BEFORE_CODES:
                with contextlib.suppress(RuntimeError):  # closed
                    self._coding.submit(self._code, kept)
        return kept

    def _code(self, kept: _Kept) -> None:
        try:
            kept.codes = codes_of(kept.matrix.units) if kept.matrix.units.size <= _CODE_BYTES else None
        except Exception:
            _LOG.exception("a matrix of %d items gets no codes: its searches compare floats", len(kept.matrix.units))
        with self._lock:
            held = 0
            for one in reversed(self._matrices.values()):  # from the one that was asked last
                held += one.code_bytes
                if held > _CODE_BYTES:
                    one.codes = None
