"""House-keeping: compacts tables that are in many pieces and drops versions that nobody may still be reading.

Writers only write. One process looks at each table every so often and tidies what is due, under a lease, so that
several servers on one store do not do it twice. Pinned versions stay, and all that is newer than the oldest of them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass

from dmesr_server.control import Control, Lease, leased
from dmesr_server.errors import ServiceError
from dmesr_server.store import Store, Table, Tidiness

_LOG = logging.getLogger(__name__)
_OLD_SHARE = 1.25  # times the age from which versions may go that the oldest has when they do: not at each look
_AGAIN_SHARE = 0.25  # of that age between two attempts, where pins keep what is old


@dataclass(frozen=True)
class Tidied:
    """What was done to one table.

    Attributes:
        table: Its name.
        before: What it was like.
        after: What it is like now.
    """

    table: str
    before: Tidiness
    after: Tidiness


class Housekeeper:
    """Looks after the tables of all catalogs. Everything but `run` blocks."""

    def __init__(self, *, store: Store, control: Control, keep_seconds: float, poll_seconds: float, owner: str):
        """Makes it; :meth:`run` begins.

        Args:
            store: The tables.
            control: Which catalogs there are, and the leases.
            keep_seconds: How long a reader may take over an unpinned version.
            poll_seconds: How often the tables are looked at.
            owner: Who takes the leases.
        """
        self._store = store
        self._control = control
        self._keep_seconds = keep_seconds
        self._poll_seconds = poll_seconds
        self._owner = owner
        self._tried: dict[tuple[str, str], float] = {}  # seconds, monotonic
        self._stopped = threading.Event()

    async def run(self) -> None:
        """Runs until it is cancelled; a table that is being tidied is finished."""
        try:
            while True:
                await asyncio.sleep(self._poll_seconds)
                try:
                    await asyncio.to_thread(self.sweep)
                except ServiceError as error:
                    _LOG.warning("tables are tidied later: %s", error.message)
                except Exception:
                    _LOG.exception("tables are tidied later")
        finally:
            self._stopped.set()

    def sweep(self) -> None:
        """Tidies what is due, one table after the other."""
        for row in self._control.catalogs.list():
            for table in self._store.catalog(row.name).tables():
                if self._stopped.is_set():
                    return
                found = table.tidiness()
                if found is None:
                    continue
                if self._due(row.name, table, found):
                    self.tidy(row.name, table)
                elif found.index_lags:
                    self._index(row.name, table)

    def _due(self, catalog: str, table: Table, found: Tidiness) -> bool:
        if found.in_pieces:
            return True
        old = found.versions > 1 and found.oldest_seconds > _OLD_SHARE * self._keep_seconds
        tried = self._tried.get((catalog, table.name))
        return old and (tried is None or time.monotonic() - tried > _AGAIN_SHARE * self._keep_seconds)

    def _index(self, catalog: str, table: Table) -> None:
        with self._leased(catalog, table) as lease:
            if lease is not None:
                table.index_keys()

    def _leased(self, catalog: str, table: Table) -> AbstractContextManager[Lease | None]:
        return leased(self._control, f"tidy:{catalog}:{table.name}", self._owner)

    def tidy(self, catalog: str, table: Table) -> Tidied | None:
        """Compacts one table and drops its old versions.

        Returns:
            What was done; None when another process is at it, or the table has gone.
        """
        self._tried[catalog, table.name] = time.monotonic()
        with self._leased(catalog, table) as lease:
            if lease is None:
                return None
            before = table.tidiness()
            table.optimise()
            after = table.tidiness()
        if before is None or after is None:
            return None
        _LOG.info(
            "tidied: catalog=%s table=%s fragments %d → %d, versions %d → %d",
            catalog,
            table.name,
            before.fragments,
            after.fragments,
            before.versions,
            after.versions,
        )
        return Tidied(table=table.name, before=before, after=after)
