"""Lets calls to an endpoint through: so many at once, none while it asks for a pause, fewer after it has asked."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import AsyncIterator


class Traffic:
    """The calls in flight to one endpoint.

    How many may be in flight is halved by each pause and grows by one for as many calls as came through since: it
    settles at what the endpoint's rate limit allows.

    Attributes:
        through: Calls that were answered.
    """

    def __init__(self, *, concurrency: int):
        """Opens the way.

        Args:
            concurrency: The most calls in flight.
        """
        self.through = 0
        self._most = self._limit = concurrency
        self._in_flight = 0
        self._at_this_limit = 0  # calls that came through
        self._open_at = 0.0  # clock of the event loop
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []  # heap: the most failed first, then in order
        self._order = itertools.count()

    @contextlib.asynccontextmanager
    async def passage(self, *, failures: int) -> AsyncIterator[None]:
        """A place among those in flight.

        Args:
            failures: Of this call so far; those that were turned away most often go first.
        """
        ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (-failures, next(self._order), ticket))
        self._admit()
        try:
            await ticket
        except asyncio.CancelledError:
            if ticket.done() and not ticket.cancelled():  # admitted in the same moment
                self._leave()
            raise
        try:
            yield
        finally:
            self._leave()

    def pause(self, seconds: float) -> bool:
        """Lets nothing through for a while. Returns whether the way was open until now."""
        now = asyncio.get_running_loop().time()
        was_open = now >= self._open_at
        if was_open:  # those that were in flight together are one sign, not many
            self._limit = max(1, self._limit // 2)
            self._at_this_limit = 0
        self._open_at = max(self._open_at, now + seconds)
        return was_open

    def came_through(self) -> None:
        """Notes an answer."""
        self.through += 1
        self._at_this_limit += 1
        if self._limit < self._most and self._at_this_limit >= self._limit:
            self._limit += 1
            self._at_this_limit = 0
            self._admit()

    def _leave(self) -> None:
        self._in_flight -= 1
        self._admit()

    def _admit(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._open_at:
            if self._timer is None:
                self._timer = loop.call_at(self._open_at, self._reopen)
            return
        while self._waiting and self._in_flight < self._limit:
            _, _, ticket = heapq.heappop(self._waiting)
            if not ticket.done():
                self._in_flight += 1
                ticket.set_result(None)

    def _reopen(self) -> None:
        self._timer = None
        self._admit()
