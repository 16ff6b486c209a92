"""Writes that are taken together: in order, and with no more ahead than a stream's share of the room."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from dmesr_server.api.grouping import Room, grouped


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
