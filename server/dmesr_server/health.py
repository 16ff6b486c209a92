"""Which services can answer: the standard health service, kept true by looking at both stores again and again.

| what is away | what is NOT_SERVING |
|---|---|
| the control database | every service: without it nobody knows which model an alias means |
| the tables of items and vectors | every service but recommendations, whose matrices are in memory |
| room on the disk, or the right to write there | every service but recommendations, which write nothing |
"""

from __future__ import annotations

import asyncio
import errno
import logging
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2

from dmesr_server import disk_room
from dmesr_server.control import Control
from dmesr_server.errors import ServiceError
from dmesr_server.store import Store

_LOG = logging.getLogger(__name__)
_LOOK_SECONDS = 2.0
_PATIENCE_SECONDS = 10.0  # for one look: a host that swallows packets is as good as away
_ROOM_BYTES = 1 << 20  # less than that and a write may fail half-way
_WITHOUT_TABLES = frozenset({"dmesr.v1.RecommendationService"})
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """The health of one API process.

    Attributes:
        servicer: gRPC's own health service.
    """

    def __init__(self, *, services: Sequence[str], store: Store, control: Control, written: Sequence[Path]):
        """Says SERVING of everything: both stores have just been opened.

        Args:
            services: Full names. The empty name, which stands for the whole server, is SERVING while all of them are.
            store: Of items and vectors.
            control: The control database.
            written: The folders that the server writes to; none for a replica.
        """
        self.servicer: Any = grpc_health.aio.HealthServicer()  # type: ignore[attr-defined]  # its types know no aio
        self._names = ("", *services)
        self._store = store
        self._control = control
        self._written = tuple(dict.fromkeys(written))
        self._trouble = ""
        for name in self._names:
            # Its own setter is a coroutine only for the sake of watchers, of which there is none yet.
            self.servicer._server_status[name] = _SERVING

    async def run(self) -> None:
        """Looks until it is cancelled."""
        looking: asyncio.Task[tuple[str, Collection[str]]] | None = None
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            looking = looking or asyncio.create_task(asyncio.to_thread(self._look))
            await asyncio.wait({looking}, timeout=_PATIENCE_SECONDS)
            trouble: str
            serving: Collection[str]
            if looking.done():
                trouble, serving = looking.result()
                looking = None
            else:  # the next round waits for it too: a second one would only hang beside it
                trouble, serving = f"no answer in {_PATIENCE_SECONDS:g} s", ()
            for name in self._names:
                await self.servicer.set(name, _SERVING if name in serving else _NOT_SERVING)
            if trouble and not self._trouble:
                _LOG.warning("health: NOT_SERVING: %s", trouble)
            elif self._trouble and not trouble:
                _LOG.info("health: SERVING again")
            self._trouble = trouble

    def _look(self) -> tuple[str, Collection[str]]:
        """What is wrong, or nothing; and which names can be served."""
        try:
            self._control.check()
        # Whatever it is, a database without its tables for one: to tell of it is all that health is for.
        except Exception as error:
            return _told(error), ()
        try:
            self._store.check()
            for folder in self._written:
                _see_room(folder)
        except Exception as error:
            return _told(error), _WITHOUT_TABLES
        return "", self._names

    async def end(self) -> None:
        """Says NOT_SERVING for good: the server is about to stop."""
        await self.servicer.enter_graceful_shutdown()


def _see_room(folder: Path) -> None:
    """Sees that something can be written, by taking some room and giving it back: what is free, quotas do not tell.

    Raises:
        ServiceError: STORE_FULL or STORE_UNAVAILABLE.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            disk_room.take(file.fileno(), 0, _ROOM_BYTES)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ServiceError(
                "STORE_FULL", f"there is less than {_ROOM_BYTES} bytes of room in {folder}: free some space"
            ) from error
        raise ServiceError(
            "STORE_UNAVAILABLE", f"{folder} cannot be written to ({error.strerror}): let the server write there"
        ) from error


def _told(error: Exception) -> str:
    return error.message if isinstance(error, ServiceError) else f"{type(error).__name__}: {error}"
