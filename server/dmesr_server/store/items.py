"""The `items` table: attributes and the hash of the picture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa

from .database import Database
from .schemas import key_field
from .tables import Table

#: What happened to a row.
RowOutcome = Literal["inserted", "updated", "unchanged"]

#: Attributes in the catalogue's own order: each a name and its values.
Attributes = tuple[tuple[str, tuple[str, ...]], ...]

NAME = "items"
_SCHEMA = pa.schema(
    [
        key_field("item_id"),
        pa.field("attributes", pa.string(), nullable=False),  # canonical JSON
        pa.field("picture_sha256", pa.string()),
        pa.field("attributes_hash", pa.string(), nullable=False),
        pa.field("update_time", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)
_PAGES_ROWS = 1_000
_BATCH_ROWS = 20_000


@dataclass(frozen=True)
class ItemWrite:
    """An item to store.

    Attributes:
        item_id: The id.
        attributes: Names and values in order.
        picture_sha256: Hex hash of its picture, or None.
    """

    item_id: str
    attributes: Attributes
    picture_sha256: str | None


@dataclass(frozen=True)
class StoredItem:
    """An item as it is stored.

    Attributes:
        item_id: The id.
        attributes: Names and values in order.
        picture_sha256: Hex hash of its picture, or None.
        attributes_hash: sha256 hex of the attributes as canonical JSON.
        update_time: When it last changed, UTC.
    """

    item_id: str
    attributes: Attributes
    picture_sha256: str | None
    attributes_hash: str
    update_time: datetime


def canonical_attributes(attributes: Attributes) -> str:
    """The attributes as JSON: a list of [name, [values]] in their own order."""
    return json.dumps(attributes, ensure_ascii=False, separators=(",", ":"))


def attributes_hash(attributes: Attributes) -> str:
    """sha256 hex of the attributes as canonical JSON."""
    return hashlib.sha256(canonical_attributes(attributes).encode()).hexdigest()


class ItemTable:
    """The items of one catalog. Safe for any thread."""

    def __init__(self, *, database: Database):
        self._table = Table(database=database, name=NAME, schema=_SCHEMA, indexed=["item_id"])

    def upsert(self, items: Sequence[ItemWrite]) -> list[RowOutcome]:
        """Inserts or replaces items; writes nothing for those that are stored just so.

        Args:
            items: Ids must be unique within the call.

        Returns:
            One outcome for each item, in order.

        Raises:
            ServiceError: STORE_FULL or STORE_UNAVAILABLE; nothing was written.
        """
        assert len({item.item_id for item in items}) == len(items), "ids are unique within one call"
        texts = [canonical_attributes(item.attributes) for item in items]
        hashes = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        state = self._table.state()
        rows = self._table.select_in(
            ["item_id", "attributes_hash", "picture_sha256"],
            column="item_id",
            values=[item.item_id for item in items],
        ).to_pylist()
        stored = {row["item_id"]: (row["attributes_hash"], row["picture_sha256"]) for row in rows}
        outcomes: list[RowOutcome] = [
            "inserted"
            if item.item_id not in stored
            else "unchanged"
            if stored[item.item_id] == (digest, item.picture_sha256)
            else "updated"
            for item, digest in zip(items, hashes, strict=True)
        ]
        changed = [index for index, outcome in enumerate(outcomes) if outcome != "unchanged"]
        if changed:
            now = datetime.now(UTC)
            written = pa.table(
                [
                    pa.array([items[index].item_id for index in changed], pa.string()),
                    pa.array([texts[index] for index in changed], pa.string()),
                    pa.array([items[index].picture_sha256 for index in changed], pa.string()),
                    pa.array([hashes[index] for index in changed], pa.string()),
                    pa.array([now] * len(changed), _SCHEMA.field("update_time").type),
                ],
                schema=_SCHEMA,
            )
            if stored or not self._table.insert(written, since=state):
                self._table.merge(written)
        return outcomes

    def get(self, ids: Sequence[str]) -> dict[str, StoredItem]:
        """The items of these ids that are there, by id."""
        rows = self._table.select_in(_SCHEMA.names, column="item_id", values=list(dict.fromkeys(ids)))
        return {item.item_id: item for item in _items(rows)}

    def ids(self) -> pa.Array:
        """All items, in order of their ids (UTF-8 bytes)."""
        return self._table.key_order(self._table.snapshot()).keys

    def existing(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids that are there."""
        return set(self._table.keys_in(list(dict.fromkeys(ids))))

    def page(self, after: str | None, limit: int) -> list[StoredItem]:
        """The items that follow an id, ordered by id (UTF-8 bytes).

        Args:
            after: The last id of the page before; None for the first page.
            limit: At most so many.
        """
        snapshot = self._table.snapshot()
        for rows in self._table.ranges(snapshot, _SCHEMA.names, rows=limit, after=after):
            return _items(rows)
        return []

    def iterate(self, batch_rows: int = _PAGES_ROWS) -> Iterator[list[StoredItem]]:
        """All items of one snapshot, ordered by id, a batch at a time."""
        snapshot = self._table.snapshot()
        for rows in self._table.ranges(snapshot, _SCHEMA.names, rows=batch_rows):
            yield _items(rows)

    def count(self) -> int:
        """How many items there are."""
        return self._table.count()

    def version(self) -> int:
        """The table's version; it rises with every change."""
        return self._table.version()

    def state(self) -> Hashable:
        """What changes with every change of the table, also when it is dropped and made anew."""
        return self._table.state()

    def hashes(self) -> pa.Table:
        """The `item_id` and `attributes_hash` of every item, in no particular order."""
        return self._table.select(["item_id", "attributes_hash"])

    def attribute_batches(self, ids: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Columns `item_id`, `attributes` (canonical JSON) and `attributes_hash`, some rows at a time.

        Args:
            ids: Only these, as far as they are there; None means all.
        """
        columns = ["item_id", "attributes", "attributes_hash"]
        if ids is None:
            yield from self._table.ranges(self._table.snapshot(), columns, rows=_BATCH_ROWS)
            return
        for start in range(0, len(ids), _BATCH_ROWS):
            yield self._table.select_in(columns, column="item_id", values=ids[start : start + _BATCH_ROWS])

    def delete(self, ids: Sequence[str]) -> None:
        """Deletes the items of these ids."""
        self._table.delete(column="item_id", values=list(dict.fromkeys(ids)))

    def optimise(self) -> None:
        """Compacts the table and drops old versions."""
        self._table.optimise()


def _items(rows: pa.Table) -> list[StoredItem]:
    return [_item(row) for row in rows.to_pylist()]


def _item(row: dict[str, Any]) -> StoredItem:
    return StoredItem(
        item_id=row["item_id"],
        attributes=tuple((name, tuple(values)) for name, values in json.loads(row["attributes"])),
        picture_sha256=row["picture_sha256"],
        attributes_hash=row["attributes_hash"],
        update_time=row["update_time"],
    )
