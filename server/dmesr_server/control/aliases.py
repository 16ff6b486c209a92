"""Aliases: names that point to models, moved atomically, and back."""

from __future__ import annotations

from ..errors import ServiceError
from . import catalogs, lineage, schema
from .alias_rows import AliasRow, alias_not_found, find_alias, point
from .database import Database
from .models import ModelState, get_model


class Aliases:
    """The aliases of all catalogs. Safe for any thread."""

    def __init__(self, *, database: Database):
        self._database = database

    def promote(self, catalog: str, alias: str, name: str, version: int, *, actor: str = "") -> AliasRow:
        """Points an alias to a model, atomically. Where it points already nothing changes.

        Args:
            catalog: The catalog.
            alias: The alias.
            name: The model's name.
            version: The model's version.
            actor: Who wants it, for the record.

        Raises:
            ServiceError: CATALOG_NOT_FOUND, MODEL_NOT_FOUND or MODEL_NOT_READY.
        """
        history = schema.alias_history
        with self._database.write() as connection:
            catalogs.get(connection, catalog, lock=True)
            model = get_model(connection, catalog, name, version, lock=True)
            if model.state != ModelState.READY:
                raise ServiceError(
                    "MODEL_NOT_READY",
                    f"the model {model.ref} is {model.state}: wait until it is READY, or publish it again if it failed",
                    model=model.ref,
                    state=model.state,
                )
            before = find_alias(connection, catalog, alias)
            if before is not None and (before.name, before.version) == (name, version):
                return before
            if before is not None:
                connection.execute(
                    history.insert().values(catalog=catalog, alias=alias, name=before.name, version=before.version)
                )
            lineage.record(
                connection,
                catalog=catalog,
                alias=alias,
                action=lineage.PROMOTED,
                model=model.ref,
                before=None if before is None else before.ref,
                actor=actor,
            )
            return point(connection, catalog, alias, name, version)

    def rollback(self, catalog: str, alias: str, *, actor: str = "") -> AliasRow:
        """Points an alias back to the model before, atomically; again, to the one before that.

        Args:
            catalog: The catalog.
            alias: The alias.
            actor: Who wants it, for the record.

        Raises:
            ServiceError: CATALOG_NOT_FOUND, ALIAS_NOT_FOUND or NO_EARLIER_MODEL.
        """
        history = schema.alias_history
        earlier = history.select().where(history.c.catalog == catalog, history.c.alias == alias)
        with self._database.write() as connection:
            catalogs.get(connection, catalog, lock=True)
            current = find_alias(connection, catalog, alias)
            if current is None:
                raise alias_not_found(catalog, alias)
            row = connection.execute(earlier.order_by(history.c.number.desc()).limit(1)).one_or_none()
            if row is None:
                raise ServiceError(
                    "NO_EARLIER_MODEL",
                    f"the alias {alias} points to {current.ref} and to no model before it: promote another one",
                    alias=alias,
                    model=current.ref,
                )
            connection.execute(history.delete().where(history.c.number == row.number))
            lineage.record(
                connection,
                catalog=catalog,
                alias=alias,
                action=lineage.ROLLED_BACK,
                model=f"{row.name}:{row.version}",
                before=current.ref,
                actor=actor,
            )
            return point(connection, catalog, alias, row.name, row.version)

    def resolve(self, catalog: str, alias: str) -> AliasRow:
        """Where an alias points.

        Raises:
            ServiceError: CATALOG_NOT_FOUND or ALIAS_NOT_FOUND.
        """
        with self._database.read() as connection:
            catalogs.get(connection, catalog)
            row = find_alias(connection, catalog, alias)
        if row is None:
            raise alias_not_found(catalog, alias)
        return row

    def list(self, catalog: str) -> list[AliasRow]:
        """The aliases of a catalog by name.

        Raises:
            ServiceError: CATALOG_NOT_FOUND.
        """
        aliases = schema.aliases
        query = aliases.select().where(aliases.c.catalog == catalog).order_by(aliases.c.alias)
        with self._database.read() as connection:
            catalogs.get(connection, catalog)
            return [AliasRow(**row) for row in connection.execute(query).mappings()]
