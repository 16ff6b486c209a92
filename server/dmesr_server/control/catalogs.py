"""Catalogs: which there are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from ..errors import ServiceError
from . import schema
from .database import Database, now

DEFAULT = "default"


@dataclass(frozen=True)
class CatalogRow:
    """A catalogue of items of one domain.

    Attributes:
        name: Its name.
        domain: What an item is, in the words that prompts use.
        language: BCP 47 tag of its descriptions.
        create_time: When it was made, UTC.
    """

    name: str
    domain: str
    language: str
    create_time: datetime


class Catalogs:
    """The catalogs. Safe for any thread."""

    def __init__(self, *, database: Database):
        self._database = database

    def create(self, name: str, domain: str = "item", language: str = "en") -> CatalogRow:
        """Makes a catalog.

        Raises:
            ServiceError: CATALOG_EXISTS.
        """
        row = CatalogRow(name=name, domain=domain, language=language, create_time=now())
        try:
            with self._database.write() as connection:
                connection.execute(schema.catalogs.insert().values(**vars(row)))
        except sa.exc.IntegrityError as error:
            raise ServiceError(
                "CATALOG_EXISTS", f"there is a catalog {name} already: use it, or choose another name", catalog=name
            ) from error
        return row

    def ensure_default(self) -> CatalogRow:
        """The catalog "default", made when it is not there."""
        try:
            return self.get(DEFAULT)
        except ServiceError as error:
            if error.reason != "CATALOG_NOT_FOUND":
                raise
        try:
            return self.create(DEFAULT)
        except ServiceError as error:
            if error.reason != "CATALOG_EXISTS":
                raise
            return self.get(DEFAULT)

    def get(self, name: str) -> CatalogRow:
        """A catalog.

        Raises:
            ServiceError: CATALOG_NOT_FOUND.
        """
        with self._database.read() as connection:
            return get(connection, name)

    def list(self) -> list[CatalogRow]:
        """All catalogs by name."""
        with self._database.read() as connection:
            rows = connection.execute(schema.catalogs.select().order_by(schema.catalogs.c.name))
            return [CatalogRow(**row) for row in rows.mappings()]

    def drop(self, name: str) -> None:
        """Drops a catalog with its recipes, jobs, models, aliases and pins. An enricher at work on it loses its job.

        Raises:
            ServiceError: CATALOG_NOT_FOUND.
        """
        with self._database.write() as connection:
            get(connection, name, lock=True)
            for table in schema.OF_A_CATALOG:
                connection.execute(table.delete().where(table.c.catalog == name))
            connection.execute(schema.catalogs.delete().where(schema.catalogs.c.name == name))


def get(connection: sa.Connection, name: str, *, lock: bool = False) -> CatalogRow:
    """A catalog, within a transaction.

    Args:
        connection: The transaction.
        name: The catalog.
        lock: Keep other transactions from changing or locking it until this one ends.

    Raises:
        ServiceError: CATALOG_NOT_FOUND.
    """
    query = schema.catalogs.select().where(schema.catalogs.c.name == name)
    row = connection.execute(query.with_for_update() if lock else query).mappings().one_or_none()
    if row is None:
        raise ServiceError(
            "CATALOG_NOT_FOUND", f"there is no catalog {name}: create it, or see the list of catalogs", catalog=name
        )
    return CatalogRow(**row)
