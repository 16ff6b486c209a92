"""Streams in which nothing moves are ended: a client that reads or sends nothing must not hold a place for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from types import TracebackType

from dmesr_server.errors import ServiceError


class Watch:
    """Counts how long a call has been waiting for its client alone. Time in which the server works does not count."""

    def __init__(self, seconds: float):
        """Watches nothing yet.

        Args:
            seconds: How long nothing may move.
        """
        self._seconds = seconds
        self._timeout = asyncio.timeout(None)
        self._busy = 0
        self._over = False

    async def __aenter__(self) -> Watch:
        await self._timeout.__aenter__()
        WATCH.set(self)
        self.moved()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the watch.

        Raises:
            ServiceError: STREAM_IDLE.
        """
        self._over = True
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            if not self._timeout.expired():
                raise
            raise ServiceError(
                "STREAM_IDLE",
                f"nothing moved in the stream for {self._seconds:g} s (admission.idle_seconds): send the next message "
                "or take the next answer sooner",
                seconds=self._seconds,
            ) from error

    def moved(self) -> None:
        """A message has come, or one has gone out."""
        if not self._busy:
            self._expire_at(asyncio.get_running_loop().time() + self._seconds)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Meanwhile the client need do nothing."""
        self._busy += 1
        self._expire_at(None)
        try:
            yield
        finally:
            self._busy -= 1
            self.moved()

    def _expire_at(self, moment: float | None) -> None:
        # A thread's work may end after its call.
        if not self._over and not self._timeout.expired():
            self._timeout.reschedule(moment)


#: Of the call that is being answered.
WATCH: ContextVar[Watch | None] = ContextVar("dmesr_watch", default=None)


def busy() -> contextlib.AbstractContextManager[None]:
    """While the server works for the call that is being answered, and while that call waits for its turn."""
    watch = WATCH.get()
    return contextlib.nullcontext() if watch is None else watch.busy()
