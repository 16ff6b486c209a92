"""The audit log: who did what, and how it ended. It only grows; triggers of the database hold that too."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from . import schema
from .database import Database, now


@dataclass(frozen=True)
class AuditRow:
    """One admin action, or an attempt at one.

    Attributes:
        number: Its place in the log; rises.
        request_id: Id of the call.
        begin_time: When it began, UTC.
        who: Who asked for it.
        token_id: By which token; empty where the server did not make it.
        peer: The address that the call came from.
        method: "Service/Method".
        catalog: The catalog that it was about; empty for none.
        subject: What it was about.
        outcome: The gRPC code that it ended with; None while it runs, or where the server died of it.
        reason: The reason of the failure; empty where there was none.
        end_time: When it ended, UTC.
    """

    number: int
    request_id: str
    begin_time: datetime
    who: str
    token_id: str
    peer: str
    method: str
    catalog: str
    subject: str
    outcome: str | None
    reason: str | None
    end_time: datetime | None


class Audit:
    """The audit log. Safe for any thread."""

    def __init__(self, *, database: Database):
        self._database = database

    def begin(
        self,
        *,
        request_id: str,
        who: str,
        token_id: str,
        peer: str,
        method: str,
        catalog: str,
        subject: str,
        refused: tuple[str, str] | None = None,
    ) -> int:
        """Writes an entry before its action begins.

        Args:
            request_id: Id of the call.
            who: Who asks for it.
            token_id: By which token.
            peer: From where.
            method: "Service/Method".
            catalog: The catalog that it is about; empty for none.
            subject: What it is about.
            refused: The gRPC code and reason with which it ends at once; None lets :meth:`end` write them.

        Returns:
            The entry's number, for :meth:`end`.

        Raises:
            ServiceError: STORE_FULL, STORE_UNAVAILABLE or READ_ONLY; nothing was written.
        """
        moment = now()
        with self._database.write() as connection:
            done = connection.execute(
                schema.audit_entries.insert().values(
                    request_id=request_id,
                    begin_time=moment,
                    who=who,
                    token_id=token_id,
                    peer=peer,
                    method=method,
                    catalog=catalog,
                    subject=subject,
                )
            )
            assert done.inserted_primary_key is not None
            number = int(done.inserted_primary_key[0])
            if refused is not None:
                _ended(connection, number, *refused, moment)
        return number

    def end(self, number: int, outcome: str, reason: str) -> None:
        """Writes how an action ended.

        Raises:
            ServiceError: STORE_FULL or STORE_UNAVAILABLE.
        """
        with self._database.write() as connection:
            _ended(connection, number, outcome, reason, now())

    def list(
        self,
        *,
        catalog: str = "",
        since: datetime | None = None,
        method: str = "",
        who: str = "",
        before: int | None = None,
        page_size: int,
    ) -> list[AuditRow]:
        """Entries, newest first.

        Args:
            catalog: Only what was about this one; all when empty.
            since: Only what began then or later.
            method: Only this "Service/Method", or "Method" of any service; all when empty.
            who: Only what this one did; all when empty.
            before: Only entries with a lower number.
            page_size: At most so many.
        """
        entries, outcomes = schema.audit_entries, schema.audit_outcomes
        query = (
            sa.select(entries, outcomes.c.outcome, outcomes.c.reason, outcomes.c.end_time)
            .select_from(entries.outerjoin(outcomes, entries.c.number == outcomes.c.number))
            .order_by(entries.c.number.desc())
            .limit(page_size)
        )
        if catalog:
            query = query.where(entries.c.catalog == catalog)
        if since is not None:
            query = query.where(entries.c.begin_time >= since)
        if method:
            of_any = entries.c.method.endswith(f"/{method}", autoescape=True)
            query = query.where(sa.or_(entries.c.method == method, of_any))
        if who:
            query = query.where(entries.c.who == who)
        if before is not None:
            query = query.where(entries.c.number < before)
        with self._database.read() as connection:
            return [AuditRow(**row) for row in connection.execute(query).mappings()]


def _ended(connection: sa.Connection, number: int, outcome: str, reason: str, moment: datetime) -> None:
    values = {"number": number, "outcome": outcome, "reason": reason, "end_time": moment}
    connection.execute(schema.audit_outcomes.insert().values(**values))
