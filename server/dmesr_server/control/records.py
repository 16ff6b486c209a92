"""Everything in the control database that points to something, as it stands at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from . import schema
from .alias_rows import AliasRow
from .catalogs import CatalogRow
from .database import Database
from .jobs import JobState
from .models import ModelState
from .pins import PinRow
from .splits import SplitRow


@dataclass(frozen=True)
class EmbeddingRecipeRecord:
    """An embedding recipe, without its names.

    Attributes:
        catalog: Its catalog.
        recipe_id: Its id.
        spec: The encoder's settings, as JSON.
        description_recipes: Id of the description recipe by route.
    """

    catalog: str
    recipe_id: str
    spec: Mapping[str, Any]
    description_recipes: Mapping[str, str]


@dataclass(frozen=True)
class ModelRecord:
    """A model, without what points to it.

    Attributes:
        catalog: Its catalog.
        name: Its name.
        version: Its version.
        recipe_id: The embedding recipe that it reads; empty where it reads none.
        manifest_json: The artefact's manifest.
        artefact_path: Where the artefact is kept.
        state: Where it stands.
    """

    catalog: str
    name: str
    version: int
    recipe_id: str
    manifest_json: str
    artefact_path: str
    state: ModelState

    @property
    def ref(self) -> str:
        """The model as "name:version"."""
        return f"{self.name}:{self.version}"


@dataclass(frozen=True)
class JobRecord:
    """A job, as far as it points to something.

    Attributes:
        job_id: Its id.
        catalog: Its catalog.
        recipe_id: The embedding recipe that it fills.
        state: Where it stands.
    """

    job_id: str
    catalog: str
    recipe_id: str
    state: JobState


@dataclass(frozen=True)
class Records:
    """What points to something, and what it may point to.

    Attributes:
        catalogs: All catalogs.
        description_recipes: Catalog and id of each.
        embedding_recipes: All of them.
        recipe_names: Catalog, name and recipe id of each.
        models: All of them.
        aliases: Where each points.
        earlier: Where a roll back would point each alias: catalog, alias, "name:version".
        splits: All of them.
        jobs: All of them.
        pins: All of them, those that have run out too.
        strays: Table and catalog of rows whose catalog is none.
    """

    catalogs: tuple[CatalogRow, ...]
    description_recipes: frozenset[tuple[str, str]]
    embedding_recipes: tuple[EmbeddingRecipeRecord, ...]
    recipe_names: tuple[tuple[str, str, str], ...]
    models: tuple[ModelRecord, ...]
    aliases: tuple[AliasRow, ...]
    earlier: tuple[tuple[str, str, str], ...]
    splits: tuple[SplitRow, ...]
    jobs: tuple[JobRecord, ...]
    pins: tuple[PinRow, ...]
    strays: tuple[tuple[str, str], ...]


def read(database: Database) -> Records:
    """All of it, by one consistent view.

    Raises:
        ServiceError: STORE_UNAVAILABLE.
    """
    with database.read() as connection:

        def rows(table: sa.Table, *names: str) -> list[dict[str, Any]]:
            columns = [table.c[name] for name in names] or [column for column in table.c if column.name != "number"]
            return [dict(row) for row in connection.execute(sa.select(*columns)).mappings()]

        catalogs = tuple(CatalogRow(**row) for row in rows(schema.catalogs))
        known = {row.name for row in catalogs}
        strays = {
            (table.name, catalog)
            for table in schema.OF_A_CATALOG
            for catalog in connection.execute(sa.select(table.c.catalog).distinct()).scalars()
            if catalog not in known
        }
        recipes = rows(schema.embedding_recipes, "catalog", "recipe_id", "spec", "description_recipes")
        models = rows(
            schema.models, "catalog", "name", "version", "recipe_id", "manifest_json", "artefact_path", "state"
        )
        return Records(
            catalogs=catalogs,
            description_recipes=frozenset(
                (row["catalog"], row["recipe_id"]) for row in rows(schema.description_recipes, "catalog", "recipe_id")
            ),
            embedding_recipes=tuple(EmbeddingRecipeRecord(**row) for row in recipes),
            recipe_names=tuple((row["catalog"], row["name"], row["recipe_id"]) for row in rows(schema.recipe_names)),
            models=tuple(ModelRecord(**{**row, "state": ModelState(row["state"])}) for row in models),
            aliases=tuple(AliasRow(**row) for row in rows(schema.aliases)),
            earlier=tuple(
                (row["catalog"], row["alias"], f"{row['name']}:{row['version']}") for row in rows(schema.alias_history)
            ),
            splits=tuple(SplitRow(**row) for row in rows(schema.alias_splits)),
            jobs=tuple(
                JobRecord(**{**row, "state": JobState(row["state"])})
                for row in rows(schema.jobs, "job_id", "catalog", "recipe_id", "state")
            ),
            pins=tuple(PinRow(**row) for row in rows(schema.pins)),
            strays=tuple(sorted(strays)),
        )


def integrity(database: Database) -> list[str]:
    """What SQLite finds wrong with its own file; nothing where all is well, or the database is another one's.

    Raises:
        ServiceError: STORE_UNAVAILABLE when it is too damaged to look.
    """
    with database.read() as connection:
        if connection.dialect.name != "sqlite":
            return []
        found = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check(5)")]
    return [line for line in found if line != "ok"]
