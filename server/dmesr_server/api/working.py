"""What blocks is done in threads: for a call, within its bounds, and no longer than somebody waits for it."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import ParamSpec, TypeVar

from dmesr_server.abandoned import ABANDONED, still_wanted
from dmesr_server.api.idle import busy
from dmesr_server.api.turnstile import Turnstile

P = ParamSpec("P")
R = TypeVar("R")

#: The call that is being answered; None for work of the process itself.
_CALL: ContextVar[Call | None] = ContextVar("dmesr_call", default=None)


class Call:
    """A call that was let in. It keeps its place until it has ended and every thread that worked for it too."""

    __slots__ = ("_began", "_ended", "_place", "_threads", "_working")

    def __init__(self, place: Turnstile, threads: Turnstile | None):
        """Takes no place yet.

        Args:
            place: Held from start to end.
            threads: Where a turn is taken for each piece of work in a thread; None where the place stands for one.
        """
        self._place = place
        self._threads = threads
        self._began = 0.0
        self._working = 0  # threads
        self._ended = False

    async def __aenter__(self) -> Call:
        """Waits for its place.

        Raises:
            ServiceError: OVERLOADED.
        """
        if not self._place.enter_at_once():
            with busy():
                await self._place.enter()
        self._began = time.monotonic()
        _CALL.set(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._leave()

    async def turn(self) -> Callable[[], None]:
        """Waits until a thread may work for the call; what it returns gives the turn back."""
        threads = self._threads
        if threads is not None:
            await threads.enter(patient=True)
        began = time.monotonic()
        self._working += 1

        def give_back() -> None:
            self._working -= 1
            if threads is not None:
                threads.leave(seconds=time.monotonic() - began)
            self._leave()

        return give_back

    def _leave(self) -> None:
        if self._ended and not self._working:
            self._place.leave(seconds=time.monotonic() - self._began)


async def in_thread(work: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Does what blocks in a thread.

    Work for a call that was cancelled is not begun any more. What has begun goes on to its end, or to where it asks
    :func:`~dmesr_server.abandoned.still_wanted`; it counts as running until then.
    """
    call = _CALL.get()
    if call is None:
        return await asyncio.to_thread(work, *args, **kwargs)
    with busy():
        give_back = await call.turn()
        abandoned = threading.Event()

        def done() -> R:
            ABANDONED.set(abandoned)
            still_wanted()
            return work(*args, **kwargs)

        context = contextvars.copy_context()
        running = asyncio.get_running_loop().run_in_executor(None, context.run, done)

        def ended(work_done: asyncio.Future[R]) -> None:
            if not work_done.cancelled():
                work_done.exception()  # heard of here, or asyncio complains where nobody waits any more
            give_back()

        running.add_done_callback(ended)
        try:
            return await asyncio.shield(running)  # cancelled, it would be lost sight of while the thread goes on
        except asyncio.CancelledError:
            abandoned.set()
            raise
