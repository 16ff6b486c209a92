"""The tables of the control database as they are now. How they came to be is in `migrations/`, which only grows."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """A moment in UTC, aware on the way in and out, also where the database keeps no time zone (SQLite)."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Takes aware times only."""
        if value is None:
            return None
        assert value.tzinfo is not None, "a time without a zone means nothing to another host"
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Gives aware times only."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = sa.MetaData()

catalogs = sa.Table(
    "catalogs",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("domain", sa.Text, nullable=False),
    sa.Column("language", sa.String(64), nullable=False),
    sa.Column("create_time", UtcDateTime, nullable=False),
)

description_recipes = sa.Table(
    "description_recipes",
    metadata,
    sa.Column("catalog", sa.String(63), primary_key=True),
    sa.Column("recipe_id", sa.String(64), primary_key=True),
    sa.Column("route", sa.String(64), nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("create_time", UtcDateTime, nullable=False),
)

embedding_recipes = sa.Table(
    "embedding_recipes",
    metadata,
    sa.Column("catalog", sa.String(63), primary_key=True),
    sa.Column("recipe_id", sa.String(64), primary_key=True),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("description_recipes", sa.JSON, nullable=False),  # route → description recipe id
    sa.Column("create_time", UtcDateTime, nullable=False),
)

recipe_names = sa.Table(
    "recipe_names",
    metadata,
    sa.Column("catalog", sa.String(63), primary_key=True),
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("recipe_id", sa.String(64), nullable=False),
    sa.Column("update_time", UtcDateTime, nullable=False),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),  # the order of creation
    sa.Column("job_id", sa.String(32), nullable=False, unique=True),
    sa.Column("catalog", sa.String(63), nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("recipe_id", sa.String(64), nullable=False),
    sa.Column("describer", sa.Text, nullable=False),
    sa.Column("encoder", sa.Text, nullable=False),
    sa.Column("request_id", sa.String(255)),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("progress", sa.JSON, nullable=False),
    sa.Column("problem", sa.JSON(none_as_null=True)),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("create_time", UtcDateTime, nullable=False),
    sa.Column("start_time", UtcDateTime),
    sa.Column("end_time", UtcDateTime),
    sa.Column("update_time", UtcDateTime, nullable=False),
    sa.UniqueConstraint("catalog", "request_id", name="jobs_request"),
    sa.Index("jobs_state", "state", "number"),
    sa.Index("jobs_catalog", "catalog", "number"),
    sqlite_autoincrement=True,  # a number never comes back, so a page token stays true
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("owner", sa.String(255)),  # null: released
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("expires", UtcDateTime, nullable=False),
)

models = sa.Table(
    "models",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),  # the order of publication
    sa.Column("catalog", sa.String(63), nullable=False),
    sa.Column("name", sa.String(63), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("recipe_id", sa.String(64), nullable=False),
    sa.Column("manifest_json", sa.Text, nullable=False),
    sa.Column("artefact_path", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("problem", sa.JSON(none_as_null=True)),
    sa.Column("create_time", UtcDateTime, nullable=False),
    sa.UniqueConstraint("catalog", "name", "version", name="models_version"),
    sa.UniqueConstraint("catalog", "name", "digest", name="models_digest"),
    sqlite_autoincrement=True,
)

model_counters = sa.Table(
    "model_counters",
    metadata,
    sa.Column("catalog", sa.String(63), primary_key=True),
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("last_version", sa.Integer, nullable=False),  # outlives deleted models: a version is used once
)

aliases = sa.Table(
    "aliases",
    metadata,
    sa.Column("catalog", sa.String(63), primary_key=True),
    sa.Column("alias", sa.String(63), primary_key=True),
    sa.Column("name", sa.String(63), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("update_time", UtcDateTime, nullable=False),
)

alias_history = sa.Table(
    "alias_history",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("catalog", sa.String(63), nullable=False),
    sa.Column("alias", sa.String(63), nullable=False),
    sa.Column("name", sa.String(63), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Index("alias_history_alias", "catalog", "alias", "number"),
    sqlite_autoincrement=True,
)

alias_splits = sa.Table(
    "alias_splits",
    metadata,
    sa.Column("catalog", sa.String(63), primary_key=True),
    sa.Column("alias", sa.String(63), primary_key=True),
    sa.Column("other_alias", sa.String(63), nullable=False),
    sa.Column("share", sa.Double, nullable=False),  # of the calls to `alias`; above 0
    sa.Column("update_time", UtcDateTime, nullable=False),
)

alias_moves = sa.Table(
    "alias_moves",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),  # the order in which it happened
    sa.Column("catalog", sa.String(63), nullable=False),
    sa.Column("alias", sa.String(63), nullable=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("model", sa.String(80), nullable=False),  # "name:version" that it points to since
    sa.Column("before", sa.String(80)),  # "name:version" that it pointed to; null: it was new
    sa.Column("actor", sa.String(255), nullable=False),
    sa.Column("move_time", UtcDateTime, nullable=False),
    sa.Index("alias_moves_catalog", "catalog", "number"),
    sqlite_autoincrement=True,
)

model_origins = sa.Table(
    "model_origins",
    metadata,
    sa.Column("catalog", sa.String(63), primary_key=True),
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("origin", sa.JSON, nullable=False),
)

pins = sa.Table(
    "pins",
    metadata,
    sa.Column("pin_id", sa.String(32), primary_key=True),
    sa.Column("catalog", sa.String(63), nullable=False),
    sa.Column("recipe_id", sa.String(64), nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("tag", sa.String(255), nullable=False),
    sa.Column("create_time", UtcDateTime, nullable=False),
    sa.Column("expire_time", UtcDateTime, nullable=False),
    sa.Index("pins_expire_time", "expire_time"),
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("token_id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(63), nullable=False),
    sa.Column("scope", sa.String(16), nullable=False),
    sa.Column("catalogs", sa.JSON(none_as_null=True)),  # names; null: all
    sa.Column("digest", sa.String(64), nullable=False),  # sha256 hex of the secret part
    sa.Column("create_time", UtcDateTime, nullable=False),
    sa.Column("created_by", sa.String(255), nullable=False),
    sa.Column("expire_time", UtcDateTime),
    sa.Column("revoke_time", UtcDateTime),
    sa.Column("revoked_by", sa.String(255)),
)

revisions = sa.Table(
    "revisions",
    metadata,
    sa.Column("name", sa.String(63), primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),  # rises with each change of what is named
)

# Triggers of the database refuse to update or delete rows of the two tables of the audit log.
audit_entries = sa.Table(
    "audit_entries",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("request_id", sa.String(64), nullable=False),
    sa.Column("begin_time", UtcDateTime, nullable=False),
    sa.Column("who", sa.String(255), nullable=False),
    sa.Column("token_id", sa.String(32), nullable=False),
    sa.Column("peer", sa.String(255), nullable=False),
    sa.Column("method", sa.String(127), nullable=False),
    sa.Column("catalog", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Index("audit_entries_begin_time", "begin_time"),
    sqlite_autoincrement=True,
)

audit_outcomes = sa.Table(
    "audit_outcomes",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),  # of the entry
    sa.Column("outcome", sa.String(32), nullable=False),
    sa.Column("reason", sa.String(63), nullable=False),
    sa.Column("end_time", UtcDateTime, nullable=False),
)

#: Tables whose rows belong to a catalog and go with it.
OF_A_CATALOG = (
    alias_moves,
    model_origins,
    alias_splits,
    alias_history,
    aliases,
    models,
    model_counters,
    pins,
    jobs,
    recipe_names,
    embedding_recipes,
    description_recipes,
)
