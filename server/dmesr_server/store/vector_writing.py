"""Writing vectors: rows are compared with what is stored, and written unless another writer was quicker.

Shapes: N rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..chunks import one_array
from .items import RowOutcome
from .schemas import TableState
from .tables import Table
from .vector_columns import EXPECTED, HASH, STAMP, column_names


@dataclass(frozen=True, eq=False)
class Looked:
    """Rows beside what was stored of them.

    Attributes:
        state: Of the table, before it was looked.
        outcomes: Of every row, by id: what its write comes to.
        rows: Those that differ from what is stored.
        stored: The rows that were there: ids, stamps and hashes.
        position: Where among these each of `rows` is; null where it is not.
    """

    state: TableState
    outcomes: Mapping[str, RowOutcome]
    rows: pa.Table
    stored: pa.Table
    position: pa.Array


class VectorWriter:
    """Writes rows of some sources into a table of vectors. Safe for any thread and process."""

    def __init__(self, table: Table, sources: Callable[[], Mapping[str, int]]):
        """Writes to a table.

        Args:
            table: The table.
            sources: Tells its sources as they are now.
        """
        self._table = table
        self._sources = sources

    def look(self, rows: pa.Table) -> Looked:
        """Compares rows with what is stored.

        Args:
            rows: Each id once: item_id, and a vector and a hash of each source to be written.
        """
        state = self._table.state()
        given = [name for name in rows.column_names if name.startswith(HASH)]
        ids = one_array(rows["item_id"])
        stored = self._table.select_in(["item_id", STAMP, *given], column="item_id", values=ids.to_pylist())
        if not stored.num_rows:  # bulk writes: comparing takes dozens of steps, which wait for Python's lock
            outcomes: dict[str, RowOutcome] = dict.fromkeys(ids.to_pylist(), "inserted")
            return Looked(state, outcomes, rows, stored, pa.nulls(len(ids), pa.int32()))
        position = pc.index_in(ids, one_array(stored["item_id"]))
        same = pc.is_valid(position)
        fresh = pa.array(np.ones(len(ids), bool))
        for name in given:
            before = one_array(stored[name]).take(position)
            after = one_array(rows[name])
            equal = pc.or_(pc.fill_null(pc.equal(before, after), False), pc.and_(pc.is_null(before), pc.is_null(after)))
            same = pc.and_(same, equal)
            fresh = pc.and_(fresh, pc.is_null(before))
        outcomes = {
            item_id: "unchanged" if unchanged else "inserted" if inserted else "updated"
            for item_id, unchanged, inserted in zip(ids.to_pylist(), same.to_pylist(), fresh.to_pylist(), strict=True)
        }
        if pc.any(same).as_py():
            changed = pc.invert(same)
            rows, position = rows.filter(changed), position.filter(changed)
        return Looked(state, outcomes, rows, stored, position)

    def write(
        self, rows: pa.Table, *, looked: Looked | None = None, allowed: Callable[[], None] | None = None
    ) -> dict[str, RowOutcome]:
        """Writes rows, again and again as long as other writers are quicker.

        Args:
            rows: As for :meth:`look`.
            looked: What a look at them has found; None looks now.
            allowed: Raises when the caller may no longer write; see :meth:`VectorTable.upsert`.

        Returns:
            The outcomes by id.
        """
        outcomes: dict[str, RowOutcome] = {}
        while rows.num_rows:
            looked = self.look(rows) if looked is None else looked
            outcomes |= looked.outcomes  # what another writer was quicker with has become something else
            rows = self._write(looked, allowed=allowed) if looked.rows.num_rows else looked.rows
            looked = None
        return outcomes

    def _write(self, looked: Looked, *, allowed: Callable[[], None] | None) -> pa.Table:
        """Writes what differs from the store. Returns the rows that another writer was quicker with."""
        new = looked.position.null_count == looked.rows.num_rows
        # Who may lose the right to write may have been stopped for long, and then those who took over must not wait.
        if new and allowed is None:
            whole = _stamped(looked.rows, _new_stamp(), stored=looked.stored, position=looked.position)
            if self._table.insert(whole, since=looked.state):
                return looked.rows.slice(0, 0)
        allowed = allowed or _always
        # Asked for after the read: a source that another writer declared in between is among them.
        if new or not self._others(looked.rows, self._sources()):
            allowed()  # the stamps were read before: what others write from now on makes the merge pass the row over
            return self._merge(looked.rows, stored=looked.stored, position=looked.position, others=[])
        return self._merge_with_others(looked.rows, allowed=allowed)

    def _others(self, rows: pa.Table, dims: Mapping[str, int]) -> list[str]:
        """The columns of the sources that are not written."""
        return [name for source in dims for name in column_names(source) if name not in rows.column_names]

    def _merge_with_others(self, rows: pa.Table, *, allowed: Callable[[], None]) -> pa.Table:
        ids = rows["item_id"].to_pylist()
        while True:
            # The sources are asked for again after the read: one that another writer declared in between would
            # otherwise be written over with null, under a stamp that is right.
            dims = self._sources()
            others = self._others(rows, dims)
            stored = self._table.select_in(["item_id", STAMP, *others], column="item_id", values=ids)
            if self._sources() == dims:
                break
        allowed()
        position = pc.index_in(one_array(rows["item_id"]), one_array(stored["item_id"]))
        return self._merge(rows, stored=stored, position=position, others=others)

    def _merge(self, rows: pa.Table, *, stored: pa.Table, position: pa.Array, others: Sequence[str]) -> pa.Table:
        """Writes whole rows, unless another writer was quicker.

        Args:
            rows: What is written.
            stored: The rows that are there, with their stamps and the other sources.
            position: Where among these each row is; null where it is not.
            others: The columns to be taken over.
        """
        whole = rows
        for name in others:
            # Other writers may have filled these columns; what they hold is written again.
            whole = whole.append_column(name, one_array(stored[name]).take(position))
        stamp = _new_stamp()
        whole = _stamped(whole, stamp, stored=stored, position=position)
        merged = self._table.merge(whole, condition=f"target.{STAMP} = source.{EXPECTED}")
        if merged.inserted + merged.updated == rows.num_rows:
            return rows.slice(0, 0)
        landed = self._table.select_in(["item_id", STAMP], column="item_id", values=rows["item_id"].to_pylist())
        landed = landed.filter(pc.equal(landed[STAMP], stamp))["item_id"].combine_chunks()
        return rows.filter(pc.invert(pc.is_in(rows["item_id"], landed)))


def _always() -> None:
    """Nothing forbids the write."""


def _new_stamp() -> int:
    return random.getrandbits(62) + 1


def _stamped(rows: pa.Table, stamp: int, *, stored: pa.Table, position: pa.Array) -> pa.Table:
    """Rows with their stamp, and with the one that each row must have that it replaces; 0 where there is none."""
    rows = rows.append_column(STAMP, pa.array(np.full(rows.num_rows, stamp, np.int64)))
    return rows.append_column(EXPECTED, one_array(stored[STAMP]).take(position).fill_null(0))
