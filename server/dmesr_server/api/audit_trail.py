"""What goes into the audit log, and when: before an action begins, and when it has ended.

An action whose entry cannot be written is refused before it begins. Once it has begun, its answer is never lost for
the log's sake: an end that cannot be written is told by the server's own log, and the entry stays without an outcome.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import Any

from dmesr_server.api.access import Caller
from dmesr_server.control import Control
from dmesr_server.errors import ServiceError

_LOG = logging.getLogger(__name__)
#: Refused attempts without a valid token that one process writes in a minute: strangers must not fill the disk.
_STRANGERS_PER_MINUTE = 60
_LONGEST = 255  # characters of a name or an address


class AuditTrail:
    """Writes the audit log. Its methods never block."""

    def __init__(self, *, control: Control):
        self._audit = control.audit
        self._strangers: deque[float] = deque()  # seconds, monotonic

    async def begin(
        self, *, caller: Caller, request_id: str, peer: str, method: str, catalog: str, subject: str
    ) -> int:
        """Writes that an action begins; its number is for :meth:`end`.

        Raises:
            ServiceError: It cannot be written, so the action must not begin.
        """
        try:
            return await asyncio.to_thread(
                self._audit.begin,
                request_id=request_id,
                who=caller.name[:_LONGEST],
                token_id=caller.token_id,
                peer=peer[:_LONGEST],
                method=method,
                catalog=catalog,
                subject=subject,
            )
        except ServiceError as error:
            if error.reason == "READ_ONLY":
                raise
            metadata: dict[str, Any] = dict(error.metadata)
            raise ServiceError(
                error.reason,
                f"{method} was refused before it began: the audit log cannot be written: {error.message}",
                **metadata,
            ) from error
        except Exception as fault:
            _LOG.exception("the audit log cannot be written")
            raise ServiceError(
                "STORE_UNAVAILABLE",
                f"{method} was refused before it began: the audit log cannot be written; the server's log tells why",
            ) from fault

    async def end(self, number: int, outcome: str, reason: str) -> None:
        """Writes how an action ended. Never fails, and goes on when the call is cancelled meanwhile."""
        writing = asyncio.ensure_future(asyncio.to_thread(self._audit.end, number, outcome, reason))
        writing.add_done_callback(lambda done: _tell(done, number, outcome))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            raise
        except Exception:
            return  # told by the callback

    async def refused(
        self,
        error: ServiceError,
        *,
        caller: Caller | None,
        who: str,
        request_id: str,
        peer: str,
        method: str,
        catalog: str,
        subject: str,
    ) -> None:
        """Writes that an attempt was refused. Never fails: the refusal stands, written or not."""
        if caller is None and not self._room_for_stranger():
            _LOG.warning("%s refused (%s) to %s: too many for the audit log", method, error.reason, peer)
            return
        try:
            await asyncio.to_thread(
                self._audit.begin,
                request_id=request_id,
                who=who[:_LONGEST],
                token_id="" if caller is None else caller.token_id,
                peer=peer[:_LONGEST],
                method=method,
                catalog=catalog[:_LONGEST],
                subject=subject,
                refused=(error.code.name, error.reason),
            )
        except Exception as fault:
            _LOG.warning("%s refused (%s) to %s; not in the audit log: %s", method, error.reason, peer, fault)

    def _room_for_stranger(self) -> bool:
        moment = time.monotonic()
        while self._strangers and moment - self._strangers[0] > 60:
            self._strangers.popleft()
        if len(self._strangers) >= _STRANGERS_PER_MINUTE:
            return False
        self._strangers.append(moment)
        return True


def _tell(done: asyncio.Future[None], number: int, outcome: str) -> None:
    fault = None if done.cancelled() else done.exception()
    if fault is not None:
        _LOG.error("the audit log lacks that its entry %d ended with %s: %s", number, outcome, fault)
