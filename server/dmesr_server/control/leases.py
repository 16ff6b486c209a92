"""Leases: who may do something now, and a fence that refuses those who only think so.

A lease's fence rises with each holder. A holder that slept through its time keeps the lease as long as nobody else has
taken it; from then on its number is stale and every check refuses it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import sqlalchemy as sa

from ..errors import ServiceError
from . import schema
from .database import Database, now

#: A lease that ends later than twice its length and this much from now was given by a clock that was ahead, and has
#: since been put back: its holder would otherwise be believed in for as long as the clock was ahead, though it be dead.
_AHEAD_SECONDS = 120.0


@dataclass(frozen=True)
class Lease:
    """A right that was granted.

    Attributes:
        name: What for.
        owner: To whom.
        fence: Rises with each holder of that name.
        expires: Until when, if it is not renewed; UTC.
        ttl_seconds: How long it lasts from each renewal.
    """

    name: str
    owner: str
    fence: int
    expires: datetime
    ttl_seconds: float


class Leases:
    """The leases. Safe for any thread."""

    def __init__(self, *, database: Database):
        self._database = database

    def acquire(self, name: str, owner: str, ttl_seconds: float) -> Lease | None:
        """Takes a lease that nobody holds.

        Args:
            name: What for.
            owner: Who takes it.
            ttl_seconds: How long it lasts without being renewed.

        Returns:
            None when somebody holds it, the same owner included.
        """
        try:
            with self._database.write() as connection:
                return acquire(connection, name, owner, ttl_seconds)
        except sa.exc.IntegrityError:  # another was first with a name that is new
            return None

    def renew(self, lease: Lease) -> Lease:
        """Starts a lease's time anew, also when it has run out and nobody has taken it.

        Args:
            lease: The lease as it was granted or last renewed.

        Raises:
            ServiceError: LEASE_LOST.
        """
        expires = now() + timedelta(seconds=lease.ttl_seconds)
        with self._database.write() as connection:
            check(connection, lease)
            connection.execute(_of(lease).values(expires=expires))
        return replace(lease, expires=expires)

    def release(self, lease: Lease) -> None:
        """Gives a lease back; nothing happens when it was lost."""
        with self._database.write() as connection:
            release(connection, lease)

    def check(self, lease: Lease) -> None:
        """Raises when the lease is no longer the holder's.

        Raises:
            ServiceError: LEASE_LOST.
        """
        with self._database.read() as connection:
            check(connection, lease)

    def live(self, prefix: str) -> list[str]:
        """Names of the leases with a prefix that somebody holds now, sorted."""
        query = (
            sa.select(schema.leases.c.name)
            .where(schema.leases.c.name.startswith(prefix, autoescape=True))
            .where(is_live(now(), 0.0))
            .order_by(schema.leases.c.name)
        )
        with self._database.read() as connection:
            return list(connection.execute(query).scalars())


def is_live(moment: datetime, ttl_seconds: float) -> sa.ColumnElement[bool]:
    """The condition that somebody holds a lease at a moment.

    Args:
        moment: Now.
        ttl_seconds: How long such leases last.
    """
    leases = schema.leases
    latest = moment + timedelta(seconds=2 * ttl_seconds + _AHEAD_SECONDS)
    return sa.and_(leases.c.owner.is_not(None), leases.c.expires > moment, leases.c.expires <= latest)


def acquire(connection: sa.Connection, name: str, owner: str, ttl_seconds: float) -> Lease | None:
    """As :meth:`Leases.acquire`, within a transaction."""
    leases = schema.leases
    moment = now()
    expires = moment + timedelta(seconds=ttl_seconds)
    free = sa.not_(is_live(moment, ttl_seconds))
    taken = connection.execute(
        leases.update()
        .where(leases.c.name == name, free)
        .values(owner=owner, fence=leases.c.fence + 1, expires=expires)
    )
    if taken.rowcount == 0:
        if connection.execute(sa.select(leases.c.name).where(leases.c.name == name)).first():
            return None
        connection.execute(leases.insert().values(name=name, owner=owner, fence=1, expires=expires))
    fence = connection.execute(sa.select(leases.c.fence).where(leases.c.name == name)).scalar_one()
    return Lease(name=name, owner=owner, fence=fence, expires=expires, ttl_seconds=ttl_seconds)


def check(connection: sa.Connection, lease: Lease) -> None:
    """As :meth:`Leases.check`, within a transaction: what follows in it is done as the holder or not at all.

    Raises:
        ServiceError: LEASE_LOST.
    """
    query = schema.leases.select().where(schema.leases.c.name == lease.name).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None or row.fence != lease.fence or row.owner != lease.owner:
        holder = "nobody" if row is None or row.owner is None else row.owner
        raise ServiceError(
            "LEASE_LOST",
            f"the lease {lease.name} is no longer held by {lease.owner} (fence {lease.fence}); {holder} holds it now "
            f"(fence {0 if row is None else row.fence}): stop the work that it was for",
            lease=lease.name,
            owner=lease.owner,
            fence=lease.fence,
            holder=holder,
        )


def release(connection: sa.Connection, lease: Lease) -> None:
    """As :meth:`Leases.release`, within a transaction."""
    connection.execute(_of(lease).values(owner=None, expires=now()))


def _of(lease: Lease) -> sa.Update:
    leases = schema.leases
    return leases.update().where(
        leases.c.name == lease.name, leases.c.fence == lease.fence, leases.c.owner == lease.owner
    )
