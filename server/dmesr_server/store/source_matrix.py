"""All vectors of one source in one matrix of unit vectors, mapped from a file: what an exact search multiplies with.

A file is made when it is first asked for and named after the table's version, so it never goes stale. Processes of a
machine map the same file: however many there are, its pages are in memory once.

Shapes: N items that have a vector of the source, B of them in a batch of the file, D width of the source.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import ServiceError
from ..mapped_file import MappedFile
from ..topk import best
from .key_order import position_after
from .schemas import TableState
from .vectors import VectorTable

_BATCH_BYTES = 8 << 20  # of the table, read at a time


class Units:
    """A matrix in parts, one behind the other; where the parts are mapped, nothing is copied.

    Attributes:
        parts: float32 [B, D] each.
    """

    def __init__(self, parts: Sequence[np.ndarray]):
        self.parts = tuple(parts)
        self._starts = np.cumsum([0, *(len(part_BD) for part_BD in self.parts)])

    def __len__(self) -> int:
        """N."""
        return int(self._starts[-1])

    @property
    def size(self) -> int:
        """N · D."""
        return sum(part_BD.size for part_BD in self.parts)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Rows that follow each other, copied where several parts hold them."""
        start, stop, _ = rows.indices(len(self))
        pieces = [
            part_BD[max(start - first, 0) : max(stop - first, 0)]
            for part_BD, first in zip(self.parts, self._starts.tolist(), strict=False)
            if first < stop and first + len(part_BD) > start
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def take(self, rows_R: np.ndarray) -> np.ndarray:
        """Any rows, float32 [R, D]."""
        parts = np.searchsorted(self._starts, rows_R, side="right") - 1
        return np.array([self.parts[part][row - self._starts[part]] for part, row in zip(parts, rows_R, strict=True)])

    def products(self, vector_D: np.ndarray) -> np.ndarray:
        """Every row's product with a vector, float32 [N]."""
        scores_N: np.ndarray = np.concatenate([part_BD @ vector_D for part_BD in self.parts])
        return scores_N


#: Few rows among which the best k are: of a unit vector [D], k, rows that may not be chosen, and the rows that alone
#: may be, bool [N], or None. None where all rows have to be compared.
Near = Callable[[np.ndarray, int, np.ndarray, np.ndarray | None], np.ndarray | None]


@dataclass(frozen=True, eq=False)
class SourceMatrix:
    """The unit vectors of one source of one version of a table.

    Attributes:
        ids_N: The items, ascending by their UTF-8 bytes; large_string.
        units: The matrix.
        state: Of the table.
        file: What it is mapped by.
    """

    ids_N: pa.LargeStringArray
    units: Units
    state: TableState
    file: MappedFile

    def nearest(
        self,
        vector_D: np.ndarray,
        k: int,
        *,
        exclude: Collection[str] = (),
        allowed_N: np.ndarray | None = None,
        near: Near | None = None,
    ) -> list[tuple[str, float]]:
        """The items whose vectors have the greatest cosine with a vector, exactly.

        Args:
            vector_D: float32.
            k: At most so many.
            exclude: Items to leave out.
            allowed_N: bool; only these rows. They are told apart before the nearest are taken.
            near: Spares comparing every row.

        Returns:
            (item id, cosine), nearest first, equal ones by id. A vector of length zero is near to nothing.
        """
        norm = float(np.linalg.norm(vector_D.astype(np.float64)))
        if not norm or not len(self.ids_N) or k < 1:
            return []
        unit_D = (vector_D / norm).astype(np.float32)
        rows_X = self._rows(exclude)
        rows_R = None if near is None else near(unit_D, k, rows_X, allowed_N)
        if rows_R is not None:
            scores_R = np.einsum("rd,d->r", self.units.take(rows_R), unit_D) if len(rows_R) else np.zeros(0, np.float32)
            chosen = best(scores_R, k)  # the rows ascend, so equal scores go by id here, too
            rows, scores = rows_R[chosen], scores_R[chosen]
        else:
            scores_N = self.units.products(unit_D)
            if allowed_N is not None:
                scores_N[~allowed_N] = -np.inf
            scores_N[rows_X] = -np.inf
            rows = best(scores_N, k)
            scores = scores_N[rows]
        ids = self.ids_N.take(pa.array(rows)).to_pylist()
        return list(zip(ids, np.clip(scores, -1.0, 1.0).tolist(), strict=True))

    def _rows(self, item_ids: Collection[str]) -> np.ndarray:
        """The rows of those items that it holds, int64."""
        found = []
        for item_id in item_ids:
            row = position_after(self.ids_N, item_id) - 1
            if row >= 0 and self.ids_N[row].as_py() == item_id:
                found.append(row)
        return np.array(found, np.int64)

    def unit(self, item_id: str) -> np.ndarray | None:
        """The unit vector of one item, float32 [D]; None where it has none."""
        rows_R = self._rows([item_id])
        return self.units.take(rows_R)[0] if len(rows_R) else None

    def sample(self, rows: int) -> tuple[list[str], np.ndarray]:
        """Some items, spread evenly over the ids, and their unit vectors [rows, D]; all where there are fewer."""
        places = np.unique(np.linspace(0, max(len(self.ids_N) - 1, 0), min(rows, len(self.ids_N))).astype(np.int64))
        return self.ids_N.take(pa.array(places)).to_pylist(), self.units.take(places)


def matrix_of(table: VectorTable, source: str, folder: Path) -> SourceMatrix:
    """The matrix of the newest version: mapped where a file is there, otherwise made.

    Args:
        table: Where the vectors are.
        source: Which.
        folder: Where the files are; made when it is not there.

    Raises:
        ServiceError: SOURCE_NOT_FOUND, STORE_FULL, or what a read raises.
    """
    snapshot = table.snapshot()
    state = snapshot.state
    of_source = hashlib.sha256(f"{table.uri}\0{table.name}\0{source}".encode()).hexdigest()[:24]
    table_id = hashlib.sha256(state.incarnation).hexdigest()[:8]
    file = folder / f"{of_source}.{table_id}.{state.version}.arrow"
    try:
        return _mapped(file, state)
    except (FileNotFoundError, ValueError):  # after a crash of the machine it may be there without its content
        pass
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.{uuid.uuid4().hex}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(unfinished, _units(table, source, state.version), table.sources(state.version).get(source, 0))
        unfinished.replace(file)
        matrix = _mapped(file, state)
    except OSError as error:
        raise ServiceError(
            "STORE_FULL",
            f"the matrix of {source} cannot be written to {folder}: {error.strerror or error}; free some space",
            operation="a search",
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
    for other in folder.glob(f"{of_source}.*.arrow"):
        if other != file:
            with contextlib.suppress(OSError):
                other.unlink()  # whoever has it mapped keeps it
    return matrix


def _units(table: VectorTable, source: str, version: int) -> Iterator[tuple[pa.Array, np.ndarray]]:
    for batch in table.scan([source], version, batch_bytes=_BATCH_BYTES):
        there = batch.filter(pc.is_valid(batch.column(source)))
        column: pa.FixedSizeListArray = there.column(source)
        vectors_BD = column.flatten().to_numpy().reshape(len(column), -1)
        norms_B = np.linalg.norm(vectors_BD, axis=1)
        keep_B = norms_B > 0
        yield there.column("item_id").filter(pa.array(keep_B)), vectors_BD[keep_B] / norms_B[keep_B, None]


def _write(file: Path, parts: Iterator[tuple[pa.Array, np.ndarray]], dim: int) -> None:
    schema = pa.schema([pa.field("item_id", pa.large_string()), pa.field("unit", pa.list_(pa.float32(), dim))])
    with file.open("wb") as opened, pa.ipc.new_file(opened, schema) as writer:
        for ids, units_BD in parts:
            if len(ids):
                units = pa.FixedSizeListArray.from_arrays(pa.array(units_BD.reshape(-1)), dim)
                writer.write_batch(pa.RecordBatch.from_arrays([ids.cast(pa.large_string()), units], schema=schema))


def _mapped(file: Path, state: TableState) -> SourceMatrix:
    mapped = MappedFile(file)
    reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped.mapping)))
    batches = [reader.get_batch(place) for place in range(reader.num_record_batches)]
    ids = [batch.column("item_id") for batch in batches]
    return SourceMatrix(
        ids_N=pa.concat_arrays(ids) if ids else pa.array([], pa.large_string()),
        units=Units([batch.column("unit").flatten().to_numpy().reshape(batch.num_rows, -1) for batch in batches]),
        state=state,
        file=mapped,
    )
