"""Traffic splits: a share of the calls to an alias that another alias answers, so that two models can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from . import catalogs, schema
from .database import Database, now


@dataclass(frozen=True)
class SplitRow:
    """A split.

    Attributes:
        catalog: Its catalog.
        alias: The alias that is called.
        other_alias: The alias that answers the share.
        share: Of the calls, above 0 and at most 1.
        update_time: Since when, UTC.
    """

    catalog: str
    alias: str
    other_alias: str
    share: float
    update_time: datetime


class Splits:
    """The splits of all catalogs. Safe for any thread."""

    def __init__(self, *, database: Database):
        self._database = database

    def set(self, catalog: str, alias: str, other_alias: str, share: float) -> SplitRow:
        """Splits an alias's calls, or splits them otherwise. Both aliases must exist.

        Raises:
            ServiceError: CATALOG_NOT_FOUND.
        """
        splits = schema.alias_splits
        row = SplitRow(catalog=catalog, alias=alias, other_alias=other_alias, share=share, update_time=now())
        with self._database.write() as connection:
            catalogs.get(connection, catalog, lock=True)
            changed = connection.execute(splits.update().where(_is(catalog, alias)).values(**vars(row)))
            if changed.rowcount == 0:
                connection.execute(splits.insert().values(**vars(row)))
        return row

    def end(self, catalog: str, alias: str) -> None:
        """Lets an alias answer all of its calls again; nothing happens when it does.

        Raises:
            ServiceError: CATALOG_NOT_FOUND.
        """
        with self._database.write() as connection:
            catalogs.get(connection, catalog, lock=True)
            connection.execute(schema.alias_splits.delete().where(_is(catalog, alias)))

    def get(self, catalog: str, alias: str) -> SplitRow | None:
        """The split of an alias; None where there is none."""
        with self._database.read() as connection:
            row = connection.execute(schema.alias_splits.select().where(_is(catalog, alias))).mappings().one_or_none()
        return None if row is None else SplitRow(**row)

    def list(self, catalog: str) -> list[SplitRow]:
        """The splits of a catalog by alias."""
        splits = schema.alias_splits
        query = splits.select().where(splits.c.catalog == catalog).order_by(splits.c.alias)
        with self._database.read() as connection:
            return [SplitRow(**row) for row in connection.execute(query).mappings()]


def _is(catalog: str, alias: str) -> sa.ColumnElement[bool]:
    splits = schema.alias_splits
    return sa.and_(splits.c.catalog == catalog, splits.c.alias == alias)
