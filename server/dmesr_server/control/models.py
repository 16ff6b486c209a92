"""Models: published artefacts with their versions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from ..errors import ServiceError
from . import catalogs, lineage, schema
from .alias_rows import find_alias
from .database import Database, now


class ModelState(StrEnum):
    """Where a model stands."""

    ADAPTING = "ADAPTING"
    READY = "READY"
    FAILED = "FAILED"


@dataclass(frozen=True)
class ModelRow:
    """A published model.

    Attributes:
        catalog: Its catalog.
        name: Its name.
        version: Counted up from 1 for each name; never used twice.
        digest: sha256 hex of the artefact.
        recipe_id: The embedding recipe whose vectors it adapts.
        manifest_json: The artefact's manifest.
        artefact_path: Where the artefact is kept.
        state: Where it stands.
        problem: Why it failed: reason, message and metadata, as JSON.
        create_time: When it was published, UTC.
        aliases: The aliases that point to it, sorted.
    """

    catalog: str
    name: str
    version: int
    digest: str
    recipe_id: str
    manifest_json: str
    artefact_path: str
    state: ModelState
    problem: Mapping[str, Any] | None
    create_time: datetime
    aliases: tuple[str, ...]

    @property
    def ref(self) -> str:
        """The model as "name:version"."""
        return f"{self.name}:{self.version}"


class Models:
    """The models of all catalogs. Safe for any thread."""

    def __init__(self, *, database: Database):
        self._database = database

    def create(
        self,
        catalog: str,
        name: str,
        digest: str,
        recipe_id: str,
        manifest_json: str,
        artefact_path: str | Callable[[int], str],
    ) -> ModelRow:
        """Registers an artefact as the next version of a name, ADAPTING. The same artefact again is the same model.

        Args:
            catalog: Its catalog.
            name: Its name.
            digest: sha256 hex of the artefact.
            recipe_id: The embedding recipe whose vectors it adapts.
            manifest_json: The artefact's manifest.
            artefact_path: Where the artefact is kept, or what makes that of the version.

        Raises:
            ServiceError: CATALOG_NOT_FOUND.
        """
        models, counters = schema.models, schema.model_counters
        with self._database.write() as connection:
            # The lock makes publishers of one catalog stand in line, so that versions have no gaps.
            catalogs.get(connection, catalog, lock=True)
            same = models.select().where(models.c.catalog == catalog, models.c.name == name, models.c.digest == digest)
            for row in _rows(connection, connection.execute(same).mappings()):
                return row
            of_name = sa.and_(counters.c.catalog == catalog, counters.c.name == name)
            counted = connection.execute(
                counters.update().where(of_name).values(last_version=counters.c.last_version + 1)
            )
            if counted.rowcount == 0:
                connection.execute(counters.insert().values(catalog=catalog, name=name, last_version=1))
            version = connection.execute(sa.select(counters.c.last_version).where(of_name)).scalar_one()
            connection.execute(
                models.insert().values(
                    catalog=catalog,
                    name=name,
                    version=version,
                    digest=digest,
                    recipe_id=recipe_id,
                    manifest_json=manifest_json,
                    artefact_path=artefact_path if isinstance(artefact_path, str) else artefact_path(version),
                    state=ModelState.ADAPTING,
                    problem=None,
                    create_time=now(),
                )
            )
            return get_model(connection, catalog, name, version)

    def get(self, catalog: str, ref: str) -> ModelRow:
        """The model that an alias points to, the newest version of a name, or "name:version", tried in that order.

        Raises:
            ServiceError: CATALOG_NOT_FOUND or MODEL_NOT_FOUND.
        """
        with self._database.read() as connection:
            catalogs.get(connection, catalog)
            return _resolve(connection, catalog, ref)

    resolve = get

    def list(self, catalog: str, page_size: int = 100, after: str | None = None) -> list[ModelRow]:
        """The models of a catalog, newest first.

        Args:
            catalog: The catalog.
            page_size: At most so many.
            after: "name:version" of the last model of the page before.

        Raises:
            ServiceError: CATALOG_NOT_FOUND, or INVALID_PAGE_TOKEN when there is no such model (any more).
        """
        models = schema.models
        query = models.select().where(models.c.catalog == catalog).order_by(models.c.number.desc()).limit(page_size)
        with self._database.read() as connection:
            catalogs.get(connection, catalog)
            if after is not None:
                name, version = _parsed(after) or ("", 0)
                number = connection.execute(
                    sa.select(models.c.number).where(_is(catalog, name, version))
                ).scalar_one_or_none()
                if number is None:
                    raise ServiceError(
                        "INVALID_PAGE_TOKEN",
                        f"the page of models after {after} cannot be found: start at the first page",
                    )
                query = query.where(models.c.number < number)
            return _rows(connection, connection.execute(query).mappings())

    def live(self, catalog: str | None = None) -> Sequence[ModelRow]:
        """Models whose adapted vectors must follow the items: ADAPTING, READY or behind an alias; oldest first.

        Args:
            catalog: Only this catalog's; None means all.
        """
        models, aliases = schema.models, schema.aliases
        aliased = sa.exists().where(
            aliases.c.catalog == models.c.catalog,
            aliases.c.name == models.c.name,
            aliases.c.version == models.c.version,
        )
        wanted = sa.or_(models.c.state.in_([ModelState.ADAPTING, ModelState.READY]), aliased)
        query = models.select().where(wanted).order_by(models.c.number)
        if catalog is not None:
            query = query.where(models.c.catalog == catalog)
        with self._database.read() as connection:
            return _rows(connection, connection.execute(query).mappings())

    def set_state(
        self, catalog: str, name: str, version: int, state: str, problem: Mapping[str, Any] | None = None
    ) -> ModelRow:
        """Records where a model stands.

        Raises:
            ServiceError: MODEL_NOT_FOUND.
        """
        with self._database.write() as connection:
            connection.execute(
                schema.models.update()
                .where(_is(catalog, name, version))
                .values(state=ModelState(state), problem=None if problem is None else dict(problem))
            )
            return get_model(connection, catalog, name, version)

    def delete(self, catalog: str, name: str, version: int) -> ModelRow:
        """Deletes a model that no alias points to.

        Returns:
            The model as it was.

        Raises:
            ServiceError: MODEL_NOT_FOUND, or MODEL_IN_USE when an alias points to it.
        """
        with self._database.write() as connection:
            model = get_model(connection, catalog, name, version, lock=True)
            if model.aliases:
                raise ServiceError(
                    "MODEL_IN_USE",
                    f"the model {model.ref} is behind the alias {', '.join(model.aliases)}: promote another one first",
                    model=model.ref,
                    aliases=",".join(model.aliases),
                )
            history = schema.alias_history
            connection.execute(
                history.delete().where(
                    history.c.catalog == catalog, history.c.name == name, history.c.version == version
                )
            )
            lineage.forget(connection, catalog, name, version)
            connection.execute(schema.models.delete().where(_is(catalog, name, version)))
            return model


def _is(catalog: str, name: str, version: int) -> sa.ColumnElement[bool]:
    models = schema.models
    return sa.and_(models.c.catalog == catalog, models.c.name == name, models.c.version == version)


def _parsed(ref: str) -> tuple[str, int] | None:
    name, _, version = ref.rpartition(":")
    return (name, int(version)) if name and version.isascii() and version.isdigit() and len(version) < 10 else None


def _resolve(connection: sa.Connection, catalog: str, ref: str) -> ModelRow:
    alias = find_alias(connection, catalog, ref)
    if alias is not None:
        return get_model(connection, catalog, alias.name, alias.version)
    models = schema.models
    query = models.select().where(models.c.catalog == catalog, models.c.name == ref)
    rows = _rows(connection, connection.execute(query.order_by(models.c.version.desc()).limit(1)).mappings())
    if rows:
        return rows[0]
    parsed = _parsed(ref)
    if parsed is None:
        raise _model_not_found(catalog, ref)
    return get_model(connection, catalog, *parsed)


def get_model(connection: sa.Connection, catalog: str, name: str, version: int, *, lock: bool = False) -> ModelRow:
    """One version of a model, within a transaction.

    Raises:
        ServiceError: MODEL_NOT_FOUND.
    """
    query = schema.models.select().where(_is(catalog, name, version))
    rows = _rows(connection, connection.execute(query.with_for_update() if lock else query).mappings())
    if not rows:
        raise _model_not_found(catalog, f"{name}:{version}")
    return rows[0]


def _model_not_found(catalog: str, ref: str) -> ServiceError:
    return ServiceError(
        "MODEL_NOT_FOUND",
        f"the catalog {catalog} has neither a model nor an alias {ref}: train and publish one (`dmesr-cli train`, "
        "`models publish`), promote one, or choose from `dmesr-cli models list`",
        catalog=catalog,
        model=ref,
    )


def _rows(connection: sa.Connection, rows: Iterable[sa.RowMapping]) -> list[ModelRow]:
    found = list(rows)
    aliases = schema.aliases
    pointing: dict[tuple[str, str, int], list[str]] = {}
    if found:
        query = aliases.select().where(aliases.c.catalog.in_({row["catalog"] for row in found}))
        for alias in connection.execute(query.order_by(aliases.c.alias)):
            pointing.setdefault((alias.catalog, alias.name, alias.version), []).append(alias.alias)
    return [
        ModelRow(
            **{name: value for name, value in row.items() if name not in ("number", "state")},
            state=ModelState(row["state"]),
            aliases=tuple(pointing.get((row["catalog"], row["name"], row["version"]), ())),
        )
        for row in found
    ]
