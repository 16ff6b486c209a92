"""Whether a failed attempt is made again, and after which pause."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from dmesr.errors import ApiError, DmesrError, InvalidInput, Overloaded, ServerUnavailable, StoreUnavailable

T = TypeVar("T")
Req = TypeVar("Req")
Tag = TypeVar("Tag")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often, and with which pauses, a call is tried again that found the server unavailable or too busy."""

    attempts: int = 5  # in all; 1 never tries again
    initial_pause_seconds: float = 0.1
    max_pause_seconds: float = 2.0
    multiplier: float = 2.0  # each pause is this many times the one before
    max_hint_seconds: float = 20.0  # a server that asks for a longer pause is not called again

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise InvalidInput(f"RetryPolicy.attempts must be 1 or more, not {self.attempts!r}")

    def pause_seconds(self, failed_attempts: int) -> float:
        """The pause after so many failed attempts, with jitter: 50 to 100 % of the exponential value."""
        pause = self.initial_pause_seconds * self.multiplier ** (failed_attempts - 1)
        return min(pause, self.max_pause_seconds) * random.uniform(0.5, 1.0)

    def next_pause(self, failed_attempts: int, error: DmesrError) -> float | None:
        """The pause before the next attempt, in seconds; None where there should be none.

        Args:
            failed_attempts: How many there were.
            error: How the last one failed. What the server asks for (google.rpc.RetryInfo) is kept to, with jitter: up
                to half as long again, or all who were refused would come back at once.
        """
        if failed_attempts >= self.attempts:
            return None
        pause = self.pause_seconds(failed_attempts)
        hint = error.retry_seconds if isinstance(error, ApiError) else None
        if hint is None:
            return pause
        return None if hint > self.max_hint_seconds else max(pause, hint * random.uniform(1.0, 1.5))


async def retrying(
    attempt: Callable[[float | None], Awaitable[T]],
    *,
    policy: RetryPolicy,
    seconds: float | None,
    idempotent: bool,
) -> T:
    """Runs `attempt` until it succeeds, fails otherwise than by an unavailable or busy server, or time is up.

    Args:
        attempt: Gets the seconds that are left, or None for no limit.
        policy: How often, and with which pauses.
        seconds: For all attempts together; None sets no limit.
        idempotent: False allows another attempt only after OVERLOADED: nothing has begun then.
    """
    loop = asyncio.get_running_loop()
    end = None if seconds is None else loop.time() + seconds
    failed = 0
    while True:
        try:
            return await attempt(None if end is None else max(end - loop.time(), 0.001))
        except (ServerUnavailable, StoreUnavailable, Overloaded) as error:
            failed += 1
            pause = policy.next_pause(failed, error)
            if pause is None or not (idempotent or isinstance(error, Overloaded)):
                raise
            if end is not None and loop.time() + pause >= end:
                raise
            await asyncio.sleep(pause)


class Resendable(Generic[Req, Tag]):
    """The requests of a stream, which can be sent from the start again until the first answer has come.

    Up to then a busy server may still refuse the call. So no more is sent than what the first answer is for; that is
    kept, and so is the one after it.
    """

    def __init__(self, requests: AsyncGenerator[tuple[Req, Tag | None], None]) -> None:
        """Takes nothing from the source yet.

        Args:
            requests: Each with a tag when it is answered, with None when it is not.
        """
        self._requests = requests
        self._taken: list[asyncio.Task[tuple[Req, Tag | None] | None]] = []
        self._answered = asyncio.Event()

    @property
    def whole(self) -> bool:
        """Whether :meth:`each` can start over."""
        return not self._answered.is_set()

    def answered(self) -> None:
        """The first answer has come: there is no way back."""
        self._answered.set()

    async def each(self) -> AsyncGenerator[tuple[Req, Tag | None], None]:
        """The requests, from the start."""
        place = 0
        wait = False
        # Taken in tasks of their own: an iteration that is given up leaves them to the next one.
        while place < len(self._taken) or self.whole:
            if place == len(self._taken):
                self._taken.append(asyncio.create_task(self._take()))
            request = await asyncio.shield(self._taken[place])
            if request is None:
                return
            if wait:
                await self._answered.wait()
            yield request
            wait = request[1] is not None
            place += 1
        self._taken.clear()
        async for request in self._requests:
            yield request

    async def close(self) -> None:
        """Ends the source."""
        for task in self._taken:
            task.cancel()
        await asyncio.gather(*self._taken, return_exceptions=True)
        await self._requests.aclose()

    async def _take(self) -> tuple[Req, Tag | None] | None:
        return await anext(self._requests, None)
