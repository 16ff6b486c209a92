"""Rows of a source's matrix that are near to a vector, by the index: the matrix itself then tells the nearest.

LanceDB compares the best of an index with the vectors themselves, too, but reads each of them and its id from files:
that is most of what such a query takes. Here it is asked for the numbers of rows alone, of the version that is mapped.

Shapes: T rows of the table, R rows found, D width of the source.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import queue
from collections.abc import Coroutine
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .database import translated
from .source_matrix import SourceMatrix
from .vector_columns import column_names
from .vector_index import Effort
from .vectors import VectorTable

_Result = TypeVar("_Result")


class _Loops:
    """Runs coroutines of LanceDB in the thread that wants them done.

    LanceDB's own way leads through another thread, five times a query: to wake one takes about as long as to look the
    nearest up.
    """

    def __init__(self) -> None:
        self._idle: queue.SimpleQueue[asyncio.AbstractEventLoop] = queue.SimpleQueue()
        atexit.register(self._close)

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Does it and waits."""
        try:
            loop = self._idle.get_nowait()
        except queue.Empty:
            loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(work)
        finally:
            self._idle.put(loop)

    def _close(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()


_LOOPS = _Loops()


class NearRows:
    """The index of one source, of the version of a matrix. Safe for any thread. Holds 12 bytes for each row."""

    def __init__(self, table: VectorTable, source: str, matrix: SourceMatrix):
        """Opens that version, and finds out where its rows stand in the matrix.

        Args:
            table: Where the index is.
            source: Which source it is of.
            matrix: Of that source.

        Raises:
            ServiceError: VERSION_NOT_FOUND, or what a read raises.
        """
        self._column = column_names(source)[0]
        with translated("opening a version"):
            self._handle, rows = _LOOPS.run(self._opened(table, matrix))
        numbers_T = rows["_rowid"].to_numpy()
        order_T = np.argsort(numbers_T, kind="stable")
        places_T = pc.index_in(rows["item_id"].cast(pa.large_string()), matrix.ids_N)
        # The index also has vectors of length zero, which the matrix leaves out.
        self._places_T = pc.fill_null(places_T, -1).to_numpy()[order_T]
        self._numbers_T = numbers_T[order_T]

    @staticmethod
    async def _opened(table: VectorTable, matrix: SourceMatrix) -> tuple[Any, pa.Table]:
        handle = await table.opened(matrix.state)
        return handle, await handle.query().select(["item_id"]).with_row_id().to_arrow()

    def near(self, unit_D: np.ndarray, wanted: int, effort: Effort) -> np.ndarray:
        """Rows of the matrix among which the nearest nearly always are, ascending, int64 [R].

        Args:
            unit_D: float32.
            wanted: How many nearest there shall be among them.
            effort: How hard it tries.
        """
        asked = wanted * effort.refine
        query = self._handle.query().nearest_to(unit_D).column(self._column).distance_type("cosine")
        query = query.nprobes(effort.nprobes).ef(max(effort.ef, asked)).limit(asked)
        with translated("a search"):
            found = _LOOPS.run(query.select(["_distance"]).with_row_id().to_arrow())
        places_R = self._places_T[np.searchsorted(self._numbers_T, found["_rowid"].to_numpy())]
        rows_R: np.ndarray = np.sort(places_R[places_R >= 0]).astype(np.int64)
        return rows_R
