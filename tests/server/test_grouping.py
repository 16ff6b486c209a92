"""Writes that are taken together: in order, and with no more ahead than a stream's share of the room."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator

import pytest
from dmesr_server.api.grouping import Room, grouped, one_ahead


class Source:
    """Requests of ten bytes, and how many were taken of them."""

    def __init__(self, count: int):
        self.taken = 0
        self._count = count

    async def requests(self) -> AsyncIterator[bytes]:
        for number in range(self._count):
            self.taken += 1
            yield b"%10d" % number


async def settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.mark.parametrize("count", [0, 1, 100])
async def test_nothing_is_lost_and_the_order_stays(count: int):
    source, room = Source(count), Room(10_000)
    groups = [group async for group in grouped(source.requests(), room=room, max_bytes=200, size=len)]
    assert [int(request) for group in groups for request in group] == list(range(count))
    assert room.group_bytes == 2_500  # as if nobody had been there


async def test_streams_share_the_room():
    room = Room(4 * 600)
    sources = [Source(100) for _ in range(3)]
    async with contextlib.AsyncExitStack() as stack:
        streams = []
        for source in sources:
            stream = grouped(source.requests(), room=room, max_bytes=10_000, size=len)
            streams.append(await stack.enter_async_context(contextlib.aclosing(stream)))
        for stream in streams:
            await anext(stream)  # dealt with from now on; meanwhile the next one comes in
        await settled()
        # The first could take 600 bytes ahead before others came.
        assert sources[2].taken * 10 <= 2 * 200
    assert room.group_bytes == 600


async def test_a_group_never_passes_its_own_bound():
    source, room = Source(100), Room(1 << 30)
    stream = grouped(source.requests(), room=room, max_bytes=50, size=len)
    async with contextlib.aclosing(stream):
        assert len(await anext(stream)) <= 5
        await settled()
        assert len(await anext(stream)) == 5


async def test_one_element_is_worked_on_ahead_and_none_is_taken_before():
    source, second = Source(5), threading.Event()

    def work(request: bytes) -> int:
        if int(request) == 1:
            second.set()
        return int(request)

    async with contextlib.aclosing(one_ahead(source.requests(), work)) as results:
        assert await anext(results) == 0
        assert await asyncio.to_thread(second.wait, 20)
        await settled()
        assert source.taken == 2, "what comes in while the second one waits belongs to the third's group"
        assert [result async for result in results] == [1, 2, 3, 4]


async def test_what_the_work_raises_comes_after_the_results_before_it():
    def work(request: bytes) -> int:
        if int(request) == 2:
            raise ValueError("the third one")
        return int(request)

    async with contextlib.aclosing(one_ahead(Source(5).requests(), work)) as results:
        assert [await anext(results), await anext(results)] == [0, 1]
        with pytest.raises(ValueError, match="the third one"):
            await anext(results)
