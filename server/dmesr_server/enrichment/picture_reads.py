"""Reads stored pictures for many calls at a time.

An engine with continuous batching is asked item by item, dozens side by side. A query of the store for each of them
would cost more than all else that the pipeline does for an item.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

from dmesr_server.store import Picture

#: A picture may have many megabytes. Who asks for more at once holds more.
PICTURES_PER_READ = 8

_Waiting = asyncio.Future[Picture | None]


class PictureReads:
    """What is asked for while a read is under way goes into the next one, whoever asks. Used by one event loop."""

    def __init__(self, read: Callable[[Sequence[str]], Mapping[str, Picture]]):
        """Reads nothing yet.

        Args:
            read: Blocks; gives the pictures that there are, by hash.
        """
        self._read = read
        self._wanted: dict[str, list[_Waiting]] = {}
        self._reading: asyncio.Task[None] | None = None

    async def get(self, sha256s: Sequence[str]) -> dict[str, Picture]:
        """The pictures that there are, by hash.

        Raises:
            ServiceError: STORE_UNAVAILABLE.
        """
        loop = asyncio.get_running_loop()
        waiting: dict[str, _Waiting] = {sha256: loop.create_future() for sha256 in sha256s}
        for sha256, future in waiting.items():
            self._wanted.setdefault(sha256, []).append(future)
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_wanted())
        try:
            found = await asyncio.gather(*waiting.values())
        finally:
            for future in waiting.values():
                future.cancel()  # of a caller that was cancelled, or whose other picture could not be read
        return {sha256: picture for sha256, picture in zip(waiting, found, strict=True) if picture is not None}

    async def _read_wanted(self) -> None:
        while self._wanted:
            waiting = {sha256: self._wanted.pop(sha256) for sha256 in list(islice(self._wanted, PICTURES_PER_READ))}
            asked = [sha256 for sha256, futures in waiting.items() if _open([futures])]
            try:
                stored = await asyncio.to_thread(self._read, asked) if asked else {}
            except Exception as error:
                for future in _open(waiting.values()):
                    future.set_exception(error)
            else:
                for sha256, futures in waiting.items():
                    for future in _open([futures]):
                        future.set_result(stored.get(sha256))


def _open(groups: Iterable[Sequence[_Waiting]]) -> list[_Waiting]:
    """Those that somebody still waits for."""
    return [future for futures in groups for future in futures if not future.done()]
