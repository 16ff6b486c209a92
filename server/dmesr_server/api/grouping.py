"""Writes of a stream, taken together as they have come in: one commit of many costs little more than one of one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from types import TracebackType
from typing import Generic, TypeVar

from dmesr_server.api.working import in_thread

T = TypeVar("T")
R = TypeVar("R")


class _End:
    """The end of the requests, and the error that ended them, if one did."""

    def __init__(self, error: BaseException | None):
        self.error = error


#: Groups of a stream that are in memory at a time: one comes in, one is being read, one waits, one is being stored.
_GROUPS = 4


class Room:
    """The bytes that all streams of a process may hold unwritten, in equal shares. For one event loop."""

    def __init__(self, total_bytes: int):
        """Makes it, with no stream in it."""
        self._total_bytes = total_bytes
        self._streams = 0

    @property
    def group_bytes(self) -> int:
        """How large a group may be while as many streams are open as now."""
        return self._total_bytes // (_GROUPS * max(self._streams, 1))

    def __enter__(self) -> Room:
        self._streams += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._streams -= 1


class _Inbox(Generic[T]):
    """What has come in and waits; it takes no more once that is too much."""

    def __init__(self, room: Room, max_bytes: int, size: Callable[[T], int]):
        self._room = room
        self._max_bytes = max_bytes
        self._size = size
        self._waiting: list[T] = []
        self._bytes = 0
        self._end: _End | None = None
        self._changed = asyncio.Condition()

    async def fill(self, requests: AsyncIterator[T]) -> None:
        end = _End(None)
        try:
            async for request in requests:
                async with self._changed:
                    self._waiting.append(request)
                    self._bytes += self._size(request)
                    self._changed.notify_all()
                    # gRPC's flow control holds the sender back while nobody takes the next request.
                    await self._changed.wait_for(lambda: self._bytes < min(self._max_bytes, self._room.group_bytes))
        except BaseException as error:
            end = _End(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._end = end
        async with self._changed:
            self._changed.notify_all()

    async def take(self) -> list[T]:
        """All that waits; empty at the end.

        Raises:
            Exception: What ended the requests.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._waiting) or self._end is not None)
            taken, self._waiting, self._bytes = self._waiting, [], 0
            self._changed.notify_all()
        if not taken and self._end is not None and self._end.error is not None:
            raise self._end.error
        return taken


async def grouped(
    requests: AsyncIterator[T], *, room: Room, max_bytes: int, size: Callable[[T], int]
) -> AsyncGenerator[list[T], None]:
    """Groups of requests in their order: whatever came in while the group before was dealt with.

    Args:
        requests: Read ahead, up to a bound.
        room: Shared with all other streams.
        max_bytes: Of what waits, where there is room for so much; one request may go beyond it.
        size: Bytes of a request.
    """
    inbox: _Inbox[T] = _Inbox(room, max_bytes, size)
    with room:
        filling = asyncio.create_task(inbox.fill(requests))
        try:
            while group := await inbox.take():
                yield group
        finally:
            filling.cancel()
            await asyncio.gather(filling, return_exceptions=True)


async def one_ahead(source: AsyncIterator[T], work: Callable[[T], R]) -> AsyncGenerator[R, None]:
    """Does work that blocks on each element, and on the next one while the last result is dealt with.

    The next element is taken only then, so that a group goes on growing for as long as nobody works on it.

    Args:
        source: The elements.
        work: Done in a thread, on one element at a time.
    """
    done: asyncio.Queue[R | _End] = asyncio.Queue()
    wanted = asyncio.Semaphore(1)

    async def run() -> None:
        end = _End(None)
        try:
            await wanted.acquire()
            async for element in source:
                done.put_nowait(await in_thread(work, element))
                del element  # it may be large, and the next one comes late
                await wanted.acquire()
        except Exception as error:
            end = _End(error)
        done.put_nowait(end)

    running = asyncio.create_task(run())
    try:
        while not isinstance(result := await done.get(), _End):
            wanted.release()
            yield result
        if result.error is not None:
            raise result.error
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
