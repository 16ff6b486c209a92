"""Makes the next pieces of a stream while the last ones are sent, and no more than that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator

from dmesr_server.abandoned import still_wanted
from dmesr_server.api.working import in_thread

BURST_BYTES = 8 * 1024 * 1024  # made at a time: enough to hide a read of the store and the hop to a thread


async def read_ahead(pieces: Iterator[bytes], *, burst_bytes: int = BURST_BYTES) -> AsyncGenerator[bytes, None]:
    """Runs an iterator that blocks in a thread, one burst ahead of who asks.

    A stream holds two bursts at most, however slow its reader is, and a thread only while a burst is made.

    Args:
        pieces: Advanced by one thread at a time.
        burst_bytes: About how much is made at a time.
    """
    ahead = asyncio.create_task(in_thread(_burst, pieces, burst_bytes))
    try:
        while burst := await ahead:
            ahead = asyncio.create_task(in_thread(_burst, pieces, burst_bytes))
            burst.reverse()
            while burst:
                yield burst.pop()  # let go of as it is sent
    finally:
        ahead.cancel()  # the thread stops before the next piece; until then the call keeps its place
        await asyncio.gather(ahead, return_exceptions=True)


def _burst(pieces: Iterator[bytes], burst_bytes: int) -> list[bytes]:
    burst: list[bytes] = []
    size = 0
    while size < burst_bytes and (piece := next(pieces, None)) is not None:
        still_wanted()
        burst.append(piece)
        size += len(piece)
    return burst
