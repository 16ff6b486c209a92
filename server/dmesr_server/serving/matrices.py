"""The matrices that searches look into, and what spares a search looking at all of one: made when they are asked for.

Shapes: N items that have a vector of the source, D width of the source, R rows found, X rows that are left out.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dmesr_server.errors import ServiceError
from dmesr_server.serving.barred import Barred
from dmesr_server.serving.codes import FEW, ItemCodes, codes_of
from dmesr_server.store import Effort, NearRows, SourceMatrix, TableState, VectorTable, matrix_of

_LOG = logging.getLogger(__name__)
_KEPT_MATRICES = 32  # mapped at a time; what they take is the file system's cache, not this process's memory
_ASKED_BEFORE_CODES = 3
_CODE_BYTES = 512 << 20  # of this process, for all matrices together
_ASKED_BEFORE_NEAR_ROWS = 3
# A table that is written to all the time has a new matrix after each write: at most a fifth of the time goes there.
_RESTS = 4.0  # times as long as the last took
_RESTS_SECONDS = 5.0  # at least

_Key = tuple[str, str, str]


class Kept:
    """A matrix that is searched.

    Attributes:
        matrix: The matrix.
        codes: What finds few rows by looking at eight bits of each number, once it is made.
        near_rows: What finds few rows by the index, once it is made.
        asked: How often it was wanted for an exact search.
    """

    def __init__(self, matrix: SourceMatrix):
        self.matrix = matrix
        self.codes: ItemCodes | None = None
        self.near_rows: NearRows | None = None
        self.asked = 0

    @property
    def code_bytes(self) -> int:
        """What the codes take."""
        return 0 if self.codes is None else self.matrix.units.size

    def by_codes(
        self, unit_D: np.ndarray, k: int, rows_X: np.ndarray, allowed_N: np.ndarray | None
    ) -> np.ndarray | None:
        """Few rows among which the best k are; None where there are no codes, or where they tell too little."""
        codes = self.codes
        if codes is None:
            return None
        (rows_R,) = codes.near(unit_D[None], k, Barred.by_question([rows_X], [allowed_N]))
        return rows_R if len(rows_R) <= max(FEW * len(self.matrix.units), k) else None

    def by_index(
        self, unit_D: np.ndarray, k: int, rows_X: np.ndarray, _: np.ndarray | None, *, effort: Effort
    ) -> np.ndarray:
        """Few rows among which the best k nearly always are."""
        assert self.near_rows is not None
        rows_R = self.near_rows.near(unit_D, k + len(rows_X), effort)
        return np.setdiff1d(rows_R, rows_X, assume_unique=True)


class Matrices:
    """Keeps the matrices of all catalogs. Safe for any thread."""

    def __init__(self, folder: Path):
        """Makes it; reads nothing.

        Args:
            folder: Where matrices are kept for all processes of this machine.
        """
        self._folder = folder
        self._lock = threading.Lock()
        self._kept: OrderedDict[_Key, Kept] = OrderedDict()
        self._making: dict[_Key, threading.Lock] = {}
        self._indexed: dict[_Key, tuple[TableState, int]] = {}  # how often an index was asked of this state
        self._preparing = False
        self._rests_until = 0.0
        self._behind = ThreadPoolExecutor(max_workers=1, thread_name_prefix="dmesr-matrices")

    def close(self) -> None:
        """Lets go of the matrices."""
        self._behind.shutdown(cancel_futures=True)
        self._kept.clear()

    def hand_back(self) -> None:
        """Lets go of what was looked at of those of which not all is looked at; they stay mapped."""
        with self._lock:
            sparse = [kept.matrix for kept in self._kept.values() if kept.codes or kept.near_rows]
        for matrix in sparse:
            matrix.file.hand_back()

    def here(self, table: VectorTable, source: str, state: TableState) -> Kept | None:
        """The matrix of that state, or of a later one, where it is mapped already."""
        kept = self._kept.get(_key(table, source))
        return kept if kept is not None and kept.matrix.state.reaches(state) else None

    def whole(self, table: VectorTable, source: str, state: TableState) -> Kept:
        """The matrix of that state, or of a later one; it is made where it is not there.

        Raises:
            ServiceError: What making it raises.
        """
        kept = self._made(table, source, state)
        with self._lock:
            kept.asked += 1
            # Codes take as long as some tens of searches and a quarter of the matrix's memory: not for one that is
            # written over before it is asked again.
            if kept.asked == _ASKED_BEFORE_CODES:
                self._soon(lambda: self._code(kept))
        return kept

    def indexed(self, table: VectorTable, source: str, state: TableState) -> Kept | None:
        """The matrix of that state, or of a later one, with the index's rows in it; None as long as that is not made.

        It is made behind the back of whoever asks several times.
        """
        kept = self.here(table, source, state)
        key = _key(table, source)
        with self._lock:
            if kept is not None and kept.near_rows is not None:
                if key in self._kept:
                    self._kept.move_to_end(key)
                return kept
            seen, asked = self._indexed.get(key, (state, 0))
            asked = asked + 1 if seen == state else 1
            self._indexed[key] = (state, asked)
            due = asked >= _ASKED_BEFORE_NEAR_ROWS and time.monotonic() >= self._rests_until
            if due and not self._preparing:
                self._preparing = True
                self._soon(lambda: self._find_rows(table, source, state))
        return None

    def _made(self, table: VectorTable, source: str, state: TableState) -> Kept:
        key = _key(table, source)
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:  # many first searches at once make it once
            kept = self.here(table, source, state)
            if kept is None:
                try:
                    kept = Kept(matrix_of(table, source, self._folder))
                except ServiceError:
                    self._kept.pop(key, None)
                    raise
        with self._lock:
            self._kept[key] = kept
            self._kept.move_to_end(key)
            while len(self._kept) > _KEPT_MATRICES:
                old, _ = self._kept.popitem(last=False)
                self._making.pop(old, None)
                self._indexed.pop(old, None)
        return kept

    def _soon(self, work: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # closed
            self._behind.submit(work)

    def _code(self, kept: Kept) -> None:
        try:
            kept.codes = codes_of(kept.matrix.units) if kept.matrix.units.size <= _CODE_BYTES else None
        except Exception:
            _LOG.exception("a matrix of %d items gets no codes: its searches compare floats", len(kept.matrix.units))
        with self._lock:
            held = 0
            for one in reversed(self._kept.values()):  # from the one that was asked last
                held += one.code_bytes
                if held > _CODE_BYTES:
                    one.codes = None

    def _find_rows(self, table: VectorTable, source: str, state: TableState) -> None:
        started = time.monotonic()
        try:
            kept = self._made(table, source, state)
            kept.near_rows = NearRows(table, source, kept.matrix)
        except ServiceError as error:
            _LOG.info("searches of %s go by the files of the index for now: %s", source, error.message)
        except Exception:
            _LOG.exception("searches of %s go by the files of the index for now", source)
        finally:
            now = time.monotonic()
            self._rests_until = now + max(_RESTS * (now - started), _RESTS_SECONDS)
            self._preparing = False


def _key(table: VectorTable, source: str) -> _Key:
    return (table.uri, table.name, source)
