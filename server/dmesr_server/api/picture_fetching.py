"""Brings in the pictures that items name by http(s) URIs, before the items are written.

It waits in the event loop, not in one of the threads that all calls share, and holds few pictures at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from dmesr.v1 import items_pb2 as pb

from dmesr_server.api import validation
from dmesr_server.api.idle import busy
from dmesr_server.api.item_intake import put, row_problem
from dmesr_server.api.parts import Parts
from dmesr_server.api.pictures import NewPicture, inspected, raw
from dmesr_server.api.working import in_thread
from dmesr_server.errors import ServiceError
from dmesr_server.pictures.fetching import failed, is_fetched
from dmesr_server.store import CatalogStore

_GROUP_BYTES = 16 * 1024 * 1024  # of pictures that are written together

#: What became of the pictures of a catalog, by their URI: a hash, or why there is none.
Fetched = Mapping[str, str | ServiceError]
_Outcome = NewPicture | ServiceError


async def fetched(parts: Parts, requests: Sequence[pb.UpsertItemsRequest]) -> dict[str, Fetched]:
    """Fetches and stores the pictures of batches, all within the time that one batch may take.

    Args:
        parts: The server's parts.
        requests: The batches. Those that will be refused bring nothing in.

    Returns:
        For each catalog what became of its URIs.

    Raises:
        ServiceError: The store's own.
    """
    end = asyncio.get_running_loop().time() + parts.fetcher.batch_seconds
    found: dict[str, Fetched] = {}
    with busy():  # it is the hosts of the pictures that are waited for, not the client
        for name, uris in _wanted(parts, requests).items():
            try:
                _, catalog = await in_thread(parts.catalog, name)
            except ServiceError:
                continue  # said once the items are taken in
            found[name] = await _Fetching(parts, catalog, uris, end=end).run()
    return found


def _wanted(parts: Parts, requests: Sequence[pb.UpsertItemsRequest]) -> dict[str, list[str]]:
    limits = parts.config.limits
    wanted: dict[str, dict[str, None]] = {}
    if not parts.fetcher.is_on:
        return {}
    for request in requests:
        uris = [item.picture.uri for item in request.items if is_fetched(item.picture.uri)]
        if not uris or len(request.items) > limits.max_items_per_batch:
            continue
        try:
            name = validation.catalog_name(request.catalog)
        except ServiceError:
            continue
        for item in request.items:
            if is_fetched(item.picture.uri) and row_problem(item, limits) is None:
                wanted.setdefault(name, {})[item.picture.uri] = None
    return {name: list(uris) for name, uris in wanted.items()}


class _Fetching:
    """The URIs of one catalog. One use only."""

    def __init__(self, parts: Parts, catalog: CatalogStore, uris: Sequence[str], *, end: float):
        self._parts = parts
        self._catalog = catalog
        self._uris = uris
        self._end = end  # by the event loop's clock
        self._next = iter(uris)
        self._came: asyncio.Queue[tuple[str, _Outcome | Exception]] = asyncio.Queue(1)
        self._settled: dict[str, str | ServiceError] = {}
        self._group: dict[str, NewPicture] = {}

    async def run(self) -> Fetched:
        fetcher = self._parts.fetcher
        workers = [asyncio.create_task(self._work()) for _ in range(min(fetcher.concurrency, len(self._uris)))]
        try:
            while len(self._settled) < len(self._uris):
                try:
                    async with asyncio.timeout_at(self._end):
                        uri, outcome = await self._came.get()
                except TimeoutError:
                    limit = f"{fetcher.batch_seconds:g} s (pictures.fetching.batch_seconds)"
                    for uri in self._uris:
                        self._settled.setdefault(uri, failed(uri, f"was not fetched within {limit} of its batch"))
                    break
                await self._settle(uri, outcome)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        await self._write()
        return self._settled

    async def _work(self) -> None:
        for uri in self._next:
            async with self._parts.fetcher.slot():
                await self._came.put((uri, await self._outcome(uri)))

    async def _outcome(self, uri: str) -> _Outcome | Exception:
        config = self._parts.config
        try:
            picture = raw(await self._parts.fetcher.fetch(uri), config.limits)
            (seen,) = await in_thread(inspected, [picture], config.limits, decoders=self._parts.decoders)
            return seen
        except Exception as error:  # a fault is raised where the call waits
            return error

    async def _settle(self, uri: str, outcome: _Outcome | Exception) -> None:
        if isinstance(outcome, NewPicture):
            self._settled[uri] = outcome.sha256
            self._group[outcome.sha256] = outcome
            if sum(len(picture.data) for picture in self._group.values()) > _GROUP_BYTES:
                await self._write()
        elif isinstance(outcome, ServiceError):
            self._settled[uri] = outcome
        else:
            raise outcome

    async def _write(self) -> None:
        group, self._group = self._group, {}
        if group:
            await in_thread(put, self._catalog, list(group.values()))
