"""Bearer tokens: whom they belong to, what they allow and until when. Their secret part is kept as a hash only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from ..errors import ServiceError
from . import catalogs as catalog_rows
from . import schema
from .database import Database, now

_REVISION = "tokens"


@dataclass(frozen=True)
class TokenRow:
    """A token.

    Attributes:
        token_id: The part of it that is no secret.
        name: Whose it is.
        scope: "READ", "WRITE" or "ADMIN".
        catalogs: For which catalogs; None for all.
        digest: sha256 hex of its secret part.
        create_time: When it was made, UTC.
        created_by: By whom.
        expire_time: When it ends by itself, UTC; None for never.
        revoke_time: When it was revoked, UTC; None where it was not.
        revoked_by: By whom.
    """

    token_id: str
    name: str
    scope: str
    catalogs: tuple[str, ...] | None
    digest: str
    create_time: datetime
    created_by: str
    expire_time: datetime | None
    revoke_time: datetime | None
    revoked_by: str | None


class Tokens:
    """The tokens. Safe for any thread."""

    def __init__(self, *, database: Database):
        self._database = database

    def create(
        self,
        *,
        token_id: str,
        name: str,
        scope: str,
        catalogs: Sequence[str] | None,
        digest: str,
        created_by: str,
        ttl_seconds: int,
    ) -> TokenRow:
        """Keeps a new token; `ttl_seconds` of 0 lets it live for ever.

        Raises:
            ServiceError: CATALOG_NOT_FOUND for one of the catalogs.
        """
        moment = now()
        row = TokenRow(
            token_id=token_id,
            name=name,
            scope=scope,
            catalogs=None if catalogs is None else tuple(catalogs),
            digest=digest,
            create_time=moment,
            created_by=created_by,
            expire_time=moment + timedelta(seconds=ttl_seconds) if ttl_seconds else None,
            revoke_time=None,
            revoked_by=None,
        )
        with self._database.write() as connection:
            for catalog in row.catalogs or ():
                catalog_rows.get(connection, catalog)
            connection.execute(schema.tokens.insert().values(**vars(row)))
            _changed(connection)
        return row

    def if_changed(self, revision: int) -> tuple[int, list[TokenRow]] | None:
        """The revision of the tokens and all of them; None where it still is the one given."""
        table = schema.revisions
        with self._database.read() as connection:
            found = connection.execute(sa.select(table.c.number).where(table.c.name == _REVISION)).scalar_one()
            return None if found == revision else (found, _rows(connection))

    def revoke(self, token_id: str, *, revoked_by: str) -> TokenRow:
        """Ends a token for ever. Who first did it, and when, stays.

        Raises:
            ServiceError: TOKEN_NOT_FOUND.
        """
        table = schema.tokens
        of_it = table.c.token_id == token_id
        with self._database.write() as connection:
            connection.execute(
                table.update()
                .where(of_it, table.c.revoke_time.is_(None))
                .values(revoke_time=now(), revoked_by=revoked_by)
            )
            _changed(connection)
            row = connection.execute(table.select().where(of_it)).mappings().one_or_none()
            if row is None:
                raise ServiceError(
                    "TOKEN_NOT_FOUND", f"there is no token {token_id!r:.80}: see the list of tokens", token_id=token_id
                )
            return _row(row)

    def list(self) -> list[TokenRow]:
        """All tokens, those that have ended too, oldest first."""
        with self._database.read() as connection:
            return _rows(connection)


def _changed(connection: sa.Connection) -> None:
    table = schema.revisions
    connection.execute(table.update().where(table.c.name == _REVISION).values(number=table.c.number + 1))


def _rows(connection: sa.Connection) -> list[TokenRow]:
    table = schema.tokens
    found = connection.execute(table.select().order_by(table.c.create_time, table.c.token_id))
    return [_row(row) for row in found.mappings()]


def _row(row: sa.RowMapping) -> TokenRow:
    catalogs = row["catalogs"]
    return TokenRow(**{**row, "catalogs": None if catalogs is None else tuple(catalogs)})
