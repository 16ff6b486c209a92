"""Where aliases point, within a transaction of whoever asks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from ..errors import ServiceError
from . import schema
from .database import now


@dataclass(frozen=True)
class AliasRow:
    """Where an alias points.

    Attributes:
        catalog: Its catalog.
        alias: Its name.
        name: The model's name.
        version: The model's version.
        update_time: Since when, UTC.
    """

    catalog: str
    alias: str
    name: str
    version: int
    update_time: datetime

    @property
    def ref(self) -> str:
        """The model as "name:version"."""
        return f"{self.name}:{self.version}"


def find_alias(connection: sa.Connection, catalog: str, alias: str) -> AliasRow | None:
    """Where an alias points; None where there is no such alias."""
    aliases = schema.aliases
    query = aliases.select().where(aliases.c.catalog == catalog, aliases.c.alias == alias)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else AliasRow(**row)


def point(connection: sa.Connection, catalog: str, alias: str, name: str, version: int) -> AliasRow:
    """Points an alias to a model."""
    aliases = schema.aliases
    row = AliasRow(catalog=catalog, alias=alias, name=name, version=version, update_time=now())
    moved = connection.execute(
        aliases.update().where(aliases.c.catalog == catalog, aliases.c.alias == alias).values(**vars(row))
    )
    if moved.rowcount == 0:
        connection.execute(aliases.insert().values(**vars(row)))
    return row


def alias_not_found(catalog: str, alias: str) -> ServiceError:
    """What whoever names an alias that is not there is told."""
    return ServiceError(
        "ALIAS_NOT_FOUND",
        f"the catalog {catalog} has no alias {alias}: promote a model to it first",
        catalog=catalog,
        alias=alias,
    )
