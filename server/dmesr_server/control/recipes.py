"""Recipes: what makes descriptions and vectors comparable, and the names that people give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from ..errors import ServiceError
from . import catalogs, schema
from .database import Database, now


@dataclass(frozen=True)
class DescriptionRecipeRow:
    """All that shapes the descriptions of one route.

    Attributes:
        recipe_id: Hash of the spec.
        route: The route.
        spec: The settings, as JSON.
    """

    recipe_id: str
    route: str
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class RecipeRow:
    """All that shapes a set of vectors.

    Attributes:
        recipe_id: Hash of the spec and the description recipes.
        catalog: Its catalog.
        names: The names bound to it now, sorted.
        spec: The encoder's settings, as JSON.
        description_recipes: Id of the description recipe by route.
        create_time: When it was first used, UTC.
    """

    recipe_id: str
    catalog: str
    names: tuple[str, ...]
    spec: Mapping[str, Any]
    description_recipes: Mapping[str, str]
    create_time: datetime


class Recipes:
    """The recipes of all catalogs. Safe for any thread."""

    def __init__(self, *, database: Database):
        self._database = database

    def save_description(self, catalog: str, recipe: DescriptionRecipeRow) -> None:
        """Keeps a description recipe. It is named by its hash, so the same again changes nothing.

        Raises:
            ServiceError: CATALOG_NOT_FOUND.
        """
        self._save(
            schema.description_recipes,
            catalog=catalog,
            recipe_id=recipe.recipe_id,
            route=recipe.route,
            spec=dict(recipe.spec),
        )

    def save_embedding(
        self, catalog: str, recipe_id: str, spec: Mapping[str, Any], description_recipes: Mapping[str, str]
    ) -> None:
        """Keeps an embedding recipe. It is named by its hash, so the same again changes nothing.

        Args:
            catalog: Its catalog.
            recipe_id: Its hash.
            spec: The encoder's settings, as JSON.
            description_recipes: Id of the description recipe by route.

        Raises:
            ServiceError: CATALOG_NOT_FOUND.
        """
        self._save(
            schema.embedding_recipes,
            catalog=catalog,
            recipe_id=recipe_id,
            spec=dict(spec),
            description_recipes=dict(description_recipes),
        )

    def _save(self, table: sa.Table, *, catalog: str, recipe_id: str, **values: Any) -> None:
        there = sa.select(table.c.recipe_id).where(table.c.catalog == catalog, table.c.recipe_id == recipe_id)
        try:
            with self._database.write() as connection:
                catalogs.get(connection, catalog)
                if connection.execute(there).first() is None:
                    row = {"catalog": catalog, "recipe_id": recipe_id, "create_time": now(), **values}
                    connection.execute(table.insert().values(**row))
        except sa.exc.IntegrityError:  # PostgreSQL: another was first, with the same content
            return

    def bind(self, catalog: str, name: str, recipe_id: str) -> None:
        """Points a name to an embedding recipe.

        Raises:
            ServiceError: CATALOG_NOT_FOUND, or RECIPE_NOT_FOUND when there is no recipe of that id.
        """
        names = schema.recipe_names
        values = {"recipe_id": recipe_id, "update_time": now()}
        with self._database.write() as connection:
            catalogs.get(connection, catalog, lock=True)
            _by_id(connection, catalog, recipe_id)
            bound = connection.execute(
                names.update().where(names.c.catalog == catalog, names.c.name == name).values(**values)
            )
            if bound.rowcount == 0:
                connection.execute(names.insert().values(catalog=catalog, name=name, **values))

    def resolve(self, catalog: str, name_or_id: str) -> RecipeRow:
        """The embedding recipe that a name is bound to, or of that id. A name comes before an id.

        Raises:
            ServiceError: CATALOG_NOT_FOUND or RECIPE_NOT_FOUND.
        """
        names = schema.recipe_names
        bound = sa.select(names.c.recipe_id).where(names.c.catalog == catalog, names.c.name == name_or_id)
        with self._database.read() as connection:
            catalogs.get(connection, catalog)
            recipe_id = connection.execute(bound).scalar_one_or_none()
            return _by_id(connection, catalog, recipe_id or name_or_id)

    def list(self, catalog: str) -> list[RecipeRow]:
        """The embedding recipes of a catalog, newest first.

        Raises:
            ServiceError: CATALOG_NOT_FOUND.
        """
        table = schema.embedding_recipes
        query = table.select().where(table.c.catalog == catalog)
        with self._database.read() as connection:
            catalogs.get(connection, catalog)
            rows = connection.execute(query.order_by(table.c.create_time.desc(), table.c.recipe_id)).mappings()
            return _rows(connection, rows.all())

    def description(self, recipe_id: str) -> DescriptionRecipeRow:
        """A description recipe. Its id is a hash of its content, so it is the same in every catalog.

        Raises:
            ServiceError: RECIPE_NOT_FOUND.
        """
        table = schema.description_recipes
        with self._database.read() as connection:
            row = connection.execute(table.select().where(table.c.recipe_id == recipe_id).limit(1)).first()
        if row is None:
            raise ServiceError(
                "RECIPE_NOT_FOUND",
                f"there is no description recipe {recipe_id}: see the list of recipes",
                recipe=recipe_id,
            )
        return DescriptionRecipeRow(recipe_id=row.recipe_id, route=row.route, spec=row.spec)


def _by_id(connection: sa.Connection, catalog: str, recipe_id: str) -> RecipeRow:
    table = schema.embedding_recipes
    query = table.select().where(table.c.catalog == catalog, table.c.recipe_id == recipe_id)
    rows = _rows(connection, connection.execute(query).mappings().all())
    if not rows:
        raise ServiceError(
            "RECIPE_NOT_FOUND",
            f"the catalog {catalog} has no recipe {recipe_id}: enrich its items first, or see the list of recipes",
            catalog=catalog,
            recipe=recipe_id,
        )
    return rows[0]


def _rows(connection: sa.Connection, rows: Sequence[sa.RowMapping]) -> list[RecipeRow]:
    names = schema.recipe_names
    bound = connection.execute(names.select().order_by(names.c.name)).all() if rows else []
    return [
        RecipeRow(
            **row,
            names=tuple(
                each.name for each in bound if (each.catalog, each.recipe_id) == (row["catalog"], row["recipe_id"])
            ),
        )
        for row in rows
    ]
