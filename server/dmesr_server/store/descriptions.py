"""The `descriptions` table: one row for each item, route and description recipe, failures included."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from .database import Database, is_in, literal
from .schemas import key_field
from .snapshots import select_in
from .tables import Table

NAME = "descriptions"
_SCHEMA = pa.schema(
    [
        key_field("key"),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("route", pa.string(), nullable=False),
        pa.field("recipe_id", pa.string(), nullable=False),
        pa.field("input_hash", pa.string(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("failure_reason", pa.string()),
        pa.field("failure_message", pa.string()),
        pa.field("provenance", pa.string(), nullable=False),  # JSON
        pa.field("create_time", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)


@dataclass(frozen=True)
class DescriptionRow:
    """The description of an item by a route, or why there is none.

    Attributes:
        item_id: The item.
        route: The route.
        recipe_id: The description recipe.
        input_hash: Hash of all that the description was made from.
        text: The description; None when it failed.
        failure_reason: Why it failed, for instance "PICTURE_UNREADABLE"; None when it did not.
        failure_message: The same in a sentence.
        provenance: How it came to be; anything that JSON holds.
        create_time: When it was made, UTC.
    """

    item_id: str
    route: str
    recipe_id: str
    input_hash: str
    text: str | None
    failure_reason: str | None = None
    failure_message: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    create_time: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def key(self) -> str:
        """The three names as one text, one for one."""
        return json.dumps([self.item_id, self.route, self.recipe_id], ensure_ascii=False, separators=(",", ":"))


class DescriptionTable:
    """The descriptions of one catalog. Safe for any thread."""

    def __init__(self, *, database: Database):
        self._table = Table(database=database, name=NAME, schema=_SCHEMA, indexed=["key", "item_id"])

    def upsert(self, rows: Sequence[DescriptionRow], *, allowed: Callable[[], None] | None = None) -> None:
        """Inserts or replaces rows by (item, route, recipe). Of rows with the same three the last one stands.

        Args:
            rows: Any number.
            allowed: Raises when the caller may no longer write. What others write after it was asked is not written
                over: it is asked again first.

        Raises:
            ServiceError: STORE_FULL or STORE_UNAVAILABLE: nothing was written. What `allowed` raises: some rows may
                have been.
        """
        left = list({row.key: row for row in rows}.values())
        if allowed is None:
            if left:
                self._table.merge(_columns(left))
            return
        while left:
            stored = self._made_at([row.key for row in left])
            left = [row for row in left if stored.get(row.key) != row.create_time]
            if not left:
                return
            allowed()
            merged = self._table.merge(_columns(left), condition=_still("target.create_time", stored.values()))
            if merged.inserted + merged.updated == len(left):
                return

    def _made_at(self, keys: Sequence[str]) -> dict[str, datetime]:
        """When the stored rows were made: what tells one from another under the same key."""
        rows = self._table.select_in(["key", "create_time"], column="key", values=list(keys))
        return dict(zip(rows["key"].to_pylist(), rows["create_time"].to_pylist(), strict=True))

    def get(self, item_ids: Sequence[str], recipe_ids: Sequence[str]) -> list[DescriptionRow]:
        """The rows of these items by these recipes, ordered by item, route and recipe."""
        if not item_ids or not recipe_ids:
            return []
        of_recipes = is_in("recipe_id", list(dict.fromkeys(recipe_ids)))
        rows = select_in(
            lambda columns, where: self._table.select(columns, where=f"({where}) AND {of_recipes}"),
            _SCHEMA.names[1:],
            column="item_id",
            values=list(dict.fromkeys(item_ids)),
        )
        found = [DescriptionRow(**{**row, "provenance": json.loads(row["provenance"])}) for row in rows.to_pylist()]
        return sorted(found, key=lambda row: (row.item_id, row.route, row.recipe_id))

    def count(self, recipe_id: str) -> tuple[int, int]:
        """How many rows of a recipe have a text, and how many failed."""
        of_recipe = f"recipe_id = {literal(recipe_id)}"
        return (
            self._table.count(where=f"{of_recipe} AND text IS NOT NULL"),
            self._table.count(where=f"{of_recipe} AND text IS NULL"),
        )

    def recipes(self) -> set[str]:
        """The recipes that there are rows of."""
        return set(self._table.select(["recipe_id"])["recipe_id"].unique().to_pylist())

    def version(self) -> int:
        """The table's version; it rises with every change."""
        return self._table.version()

    def delete(self, item_ids: Sequence[str]) -> None:
        """Deletes the rows of these items."""
        self._table.delete(column="item_id", values=list(dict.fromkeys(item_ids)))

    def delete_rows(self, rows: Sequence[DescriptionRow]) -> None:
        """Deletes just these rows, where nobody has replaced them since they were read."""
        keys = list(dict.fromkeys(row.key for row in rows))
        self._table.delete(
            column="key", values=keys, condition=_still("create_time", [row.create_time for row in rows])
        )

    def optimise(self) -> None:
        """Compacts the table and drops old versions."""
        self._table.optimise()


def _columns(rows: Sequence[DescriptionRow]) -> pa.Table:
    columns = [
        [row.key for row in rows],
        [row.item_id for row in rows],
        [row.route for row in rows],
        [row.recipe_id for row in rows],
        [row.input_hash for row in rows],
        [row.text for row in rows],
        [row.failure_reason for row in rows],
        [row.failure_message for row in rows],
        [json.dumps(dict(row.provenance), ensure_ascii=False, sort_keys=True) for row in rows],
        [row.create_time for row in rows],
    ]
    arrays = [pa.array(column, column_field.type) for column, column_field in zip(columns, _SCHEMA, strict=True)]
    return pa.table(arrays, schema=_SCHEMA)


def _still(column: str, times: Iterable[datetime]) -> str:
    """A condition that a row is one of those made at these times, not what somebody has put in its place."""
    microseconds = pa.array(sorted(set(times)), _SCHEMA.field("create_time").type).cast(pa.int64()).to_pylist()
    return f"CAST({column} AS BIGINT) IN ({', '.join(map(str, microseconds))})" if microseconds else "false"
