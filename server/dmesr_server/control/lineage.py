"""What models come from and where they were promoted to: kept for whoever asks later, never read to answer a call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from . import catalogs, schema
from .database import Database, now

PROMOTED = "PROMOTED"
ROLLED_BACK = "ROLLED_BACK"
_ACTOR_LENGTH = 255


@dataclass(frozen=True)
class MoveRow:
    """An alias was pointed to another model.

    Attributes:
        alias: The alias.
        action: "PROMOTED" or "ROLLED_BACK".
        model: "name:version" that it points to since.
        before: "name:version" that it pointed to before; None where it was new.
        actor: Who did it; "" for what was done before that was recorded.
        move_time: When, UTC.
    """

    alias: str
    action: str
    model: str
    before: str | None
    actor: str
    move_time: datetime


class Lineage:
    """The records of all catalogs. Safe for any thread."""

    def __init__(self, *, database: Database):
        self._database = database

    def moves(self, catalog: str, ref: str) -> list[MoveRow]:
        """When aliases were pointed to a model or away from it, oldest first."""
        moves = schema.alias_moves
        about = sa.or_(moves.c.model == ref, moves.c.before == ref)
        columns = [column for column in moves.c if column.name not in ("number", "catalog")]
        query = sa.select(*columns).where(moves.c.catalog == catalog, about).order_by(moves.c.number)
        with self._database.read() as connection:
            return [MoveRow(**row) for row in connection.execute(query).mappings()]

    def keep_origin(self, catalog: str, name: str, version: int, origin: Mapping[str, Any]) -> None:
        """Keeps what a model was made from. What was kept first stays.

        Raises:
            ServiceError: CATALOG_NOT_FOUND.
        """
        origins = schema.model_origins
        with self._database.write() as connection:
            catalogs.get(connection, catalog, lock=True)
            if connection.execute(sa.select(origins.c.version).where(_is(catalog, name, version))).first() is None:
                connection.execute(
                    origins.insert().values(catalog=catalog, name=name, version=version, origin=dict(origin))
                )

    def origin(self, catalog: str, name: str, version: int) -> Mapping[str, Any] | None:
        """What a model was made from; None where nothing was kept."""
        query = sa.select(schema.model_origins.c.origin).where(_is(catalog, name, version))
        with self._database.read() as connection:
            found: Mapping[str, Any] | None = connection.execute(query).scalar_one_or_none()
        return found


def record(
    connection: sa.Connection, *, catalog: str, alias: str, action: str, model: str, before: str | None, actor: str
) -> None:
    """Writes a move down, in the transaction that makes it."""
    values = {"catalog": catalog, "alias": alias, "action": action, "model": model, "before": before}
    connection.execute(schema.alias_moves.insert().values(**values, actor=actor[:_ACTOR_LENGTH], move_time=now()))


def forget(connection: sa.Connection, catalog: str, name: str, version: int) -> None:
    """Forgets what a deleted model was made from. Where it was promoted to stays on record."""
    connection.execute(schema.model_origins.delete().where(_is(catalog, name, version)))


def _is(catalog: str, name: str, version: int) -> sa.ColumnElement[bool]:
    origins = schema.model_origins
    return sa.and_(origins.c.catalog == catalog, origins.c.name == name, origins.c.version == version)
