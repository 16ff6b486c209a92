"""The `trained_<model>` tables: which vectors a model was trained on, item by item, so that later drift can be counted.

A version of the embeddings is cleaned up some time after its last reader; what is kept here is a short hash for each
item and outlives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ..chunks import one_array
from .database import Database, encoded
from .schemas import key_field
from .snapshots import Snapshot
from .tables import Table
from .vector_columns import column_names, source_dims

PREFIX = "trained_"
_SCHEMA = pa.schema([key_field("item_id"), pa.field("hashes", pa.string(), nullable=False)])
_KEPT = 16  # hex digits of each source's hash: 64 bits, which no two versions of one vector share by chance
_ROWS = 100_000  # written at a time


@dataclass(frozen=True)
class ItemDrift:
    """How the items with vectors differ from those that a model was trained on.

    Attributes:
        then: Items with a vector of the model's sources when it was trained.
        now: Those that have one now.
        added: Of `now`, those that had none then.
        changed: Of `now`, those whose vectors are others.
        removed: Of `then`, those that have none now.
    """

    then: int
    now: int
    added: int
    changed: int
    removed: int


class TrainedTable:
    """What one model was trained on. Safe for any thread."""

    def __init__(self, *, database: Database, model_key: str):
        self._table = Table(database=database, name=PREFIX + encoded(model_key), schema=_SCHEMA, indexed=[])

    @property
    def name(self) -> str:
        """The table's name in the database."""
        return self._table.name

    def keep(self, rows: pa.Table) -> None:
        """Keeps what :func:`short_hashes` told. The same again changes nothing.

        Raises:
            ServiceError: STORE_FULL or STORE_UNAVAILABLE.
        """
        for start in range(0, rows.num_rows, _ROWS):
            self._table.merge(rows.slice(start, _ROWS))

    def drift(self, rows: pa.Table) -> ItemDrift:
        """Compares what was kept with the items of now, as :func:`short_hashes` tells them."""
        then = self._table.select(["item_id", "hashes"])
        place = pc.index_in(one_array(rows["item_id"]), one_array(then["item_id"]))
        before = one_array(then["hashes"]).take(place)
        changed = pc.sum(pc.not_equal(before, one_array(rows["hashes"]))).as_py() or 0
        return ItemDrift(
            then=then.num_rows,
            now=rows.num_rows,
            added=place.null_count,
            changed=int(changed),
            removed=then.num_rows - (rows.num_rows - place.null_count),
        )

    def drop(self) -> None:
        """Drops the table; nothing happens when there is none."""
        self._table.drop()


def short_hashes(snapshot: Snapshot, sources: Sequence[str]) -> pa.Table:
    """The items that have a vector of one of the sources, each with the beginnings of its sources' hashes.

    Args:
        snapshot: A version of the embeddings.
        sources: What a model reads; those that the version does not have count as absent.

    Returns:
        item_id and hashes, both utf8.
    """
    known = source_dims(snapshot.schema)
    names = [column_names(source)[1] for source in sources if source in known]
    if not names:
        return _SCHEMA.empty_table()
    rows = snapshot.select(["item_id", *names]).combine_chunks()
    columns = {
        source: pc.fill_null(rows[column_names(source)[1]], "")
        if source in known
        else pa.chunked_array([pa.repeat("", rows.num_rows)])
        for source in sources
    }
    parts = [pc.utf8_slice_codeunits(column, 0, _KEPT) for column in columns.values()]
    hashes = (
        pc.binary_join_element_wise(*parts, "|") if rows.num_rows else pa.chunked_array([pa.array([], pa.string())])
    )
    present = pc.not_equal(hashes, "|" * (len(sources) - 1))
    found = pa.table({"item_id": rows["item_id"].cast(pa.string()), "hashes": hashes})
    return found.filter(present).cast(_SCHEMA)
