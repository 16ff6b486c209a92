"""Brings both stores to this version of the server, whoever opens them first."""

from __future__ import annotations

import logging
import time

from dmesr_server.control import Control, leased
from dmesr_server.store import Store

_LOG = logging.getLogger(__name__)
_LEASE = "migrate-store"
_PAUSE_SECONDS = 0.2


def bring_up_to_date(*, store: Store, control: Control, owner: str) -> None:
    """Migrates the control database, then the tables, step by step. Other processes wait until one of them is done.

    Args:
        store: The tables; opened, so not of a newer version.
        control: The control database.
        owner: Who takes the lease.

    Raises:
        ServiceError: STORE_UNAVAILABLE when a newer version of the server made the control database, or what is read
            only would have to be changed; STORE_FULL. What was done stays done, and the next start goes on from there.
    """
    control.migrate()
    waiting = False
    while store.schema_version < store.newest:
        with leased(control, _LEASE, owner) as lease:
            if lease is None:
                if not waiting:
                    _LOG.info("another process brings the store %s up to date: waiting for it", store.uri)
                waiting = True
                time.sleep(_PAUSE_SECONDS)
                continue
            was = store.schema_version
            names = [row.name for row in control.catalogs.list()]
            done = store.migrate(names, allowed=lambda held=lease: control.leases.check(held))  # type: ignore[misc]
            if done:
                _LOG.warning(
                    "the store %s was made by an older version of this server and was brought from schema %d to %d: "
                    "%s. An older server cannot use it any more",
                    store.uri,
                    was,
                    store.schema_version,
                    "; ".join(done),
                )
