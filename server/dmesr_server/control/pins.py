"""Pins: versions of vectors that house-keeping keeps for a time."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from ..errors import ServiceError
from . import catalogs, schema
from .database import Database, now


@dataclass(frozen=True)
class PinRow:
    """A pinned version.

    Attributes:
        pin_id: Its id.
        catalog: Its catalog.
        recipe_id: The embedding recipe.
        version: The version that stays readable.
        holder: Who pinned it, for people.
        tag: The tag in the store that keeps it.
        create_time: Since when, UTC.
        expire_time: Until when, UTC.
    """

    pin_id: str
    catalog: str
    recipe_id: str
    version: int
    holder: str
    tag: str
    create_time: datetime
    expire_time: datetime


class Pins:
    """The pins of all catalogs. Safe for any thread."""

    def __init__(self, *, database: Database):
        self._database = database

    def create(self, catalog: str, recipe_id: str, version: int, ttl_seconds: float, holder: str, tag: str) -> PinRow:
        """Records a pin. The tag in the store is the caller's to set and to take away.

        Raises:
            ServiceError: CATALOG_NOT_FOUND.
        """
        moment = now()
        row = PinRow(
            pin_id=uuid.uuid4().hex,
            catalog=catalog,
            recipe_id=recipe_id,
            version=version,
            holder=holder,
            tag=tag,
            create_time=moment,
            expire_time=moment + timedelta(seconds=ttl_seconds),
        )
        with self._database.write() as connection:
            catalogs.get(connection, catalog)
            connection.execute(schema.pins.insert().values(**vars(row)))
        return row

    def get(self, pin_id: str) -> PinRow:
        """A pin that has not expired.

        Raises:
            ServiceError: VERSION_NOT_FOUND.
        """
        with self._database.read() as connection:
            row = _row(connection, pin_id)
        if row is None or row.expire_time <= now():
            raise ServiceError(
                "VERSION_NOT_FOUND", f"there is no pin {pin_id} (any more): pin the newest version", pin_id=pin_id
            )
        return row

    def release(self, pin_id: str) -> PinRow | None:
        """Forgets a pin.

        Returns:
            The pin as it was, so that its tag can be taken away; None when there is none.
        """
        with self._database.write() as connection:
            row = _row(connection, pin_id)
            connection.execute(schema.pins.delete().where(schema.pins.c.pin_id == pin_id))
            return row

    def expired(self) -> list[PinRow]:
        """The pins whose time is over and that are still recorded: take their tags away, then release them."""
        query = schema.pins.select().where(schema.pins.c.expire_time <= now()).order_by(schema.pins.c.expire_time)
        with self._database.read() as connection:
            return [PinRow(**row) for row in connection.execute(query).mappings()]


def _row(connection: sa.Connection, pin_id: str) -> PinRow | None:
    row = connection.execute(schema.pins.select().where(schema.pins.c.pin_id == pin_id)).mappings().one_or_none()
    return None if row is None else PinRow(**row)
