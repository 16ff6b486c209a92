"""Items: what the catalogue holds, and the pictures that belong to them."""

from __future__ import annotations

import builtins
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
)
from contextlib import aclosing
from dataclasses import dataclass

from dmesr.arguments import cut, id_list, one_id, positive, utf8_bytes
from dmesr.bridge import EventLoopThread, notify
from dmesr.errors import ItemNotFound
from dmesr.item import Item
from dmesr.rows import RejectedRow, RowCounter, UpsertSummary, to_time
from dmesr.transport import Rpc, Transport
from dmesr.upserts import UpsertBatches
from dmesr.v1 import items_pb2

# Batches that may be unanswered: the server commits what has come in together.
_WINDOW = 16
UPSERT = Rpc("ItemService/UpsertItems", items_pb2.UpsertItemsRequest, items_pb2.UpsertItemsResponse)
GET = Rpc("ItemService/GetItems", items_pb2.GetItemsRequest, items_pb2.GetItemsResponse, idempotent=True)
LIST = Rpc("ItemService/ListItems", items_pb2.ListItemsRequest, items_pb2.ListItemsResponse, idempotent=True)
DELETE = Rpc("ItemService/DeleteItems", items_pb2.DeleteItemsRequest, items_pb2.DeleteItemsResponse)
GET_PICTURE = Rpc("ItemService/GetPicture", items_pb2.GetPictureRequest, items_pb2.GetPictureResponse, idempotent=True)

# One answer holds whole items; this keeps it well below what a process should have to take at once.
_GET_ITEMS_PER_CALL = 1_000


@dataclass(frozen=True)
class ItemsFound:
    """The answer to a read by ids."""

    items: tuple[Item, ...]  # in the order asked for
    missing: tuple[str, ...]  # the ids that no item has


@dataclass(frozen=True)
class DeleteSummary:
    """What was deleted."""

    deleted: int
    missing: tuple[str, ...]  # the ids that no item had


def _from_wire(item: items_pb2.Item) -> Item:
    return Item(
        item_id=item.item_id,
        attributes={attribute.name: list(attribute.values) for attribute in item.attributes},
        picture=f"sha256:{item.picture.sha256}" if item.picture.sha256 else None,
        update_time=to_time(item.update_time),
    )


class AsyncItems:
    """The items of one catalog, for coroutines. See :class:`Items` for what each call does."""

    def __init__(self, transport: Transport, catalog: str) -> None:
        self._transport = transport
        self._catalog = catalog

    async def upsert(
        self,
        items: Iterable[Item | RejectedRow] | AsyncIterable[Item | RejectedRow],
        *,
        batch_size: int = 500,
        progress: Callable[[UpsertSummary], object] | None = None,
    ) -> UpsertSummary:
        """Inserts or replaces items. A plain iterable that is no list runs in a worker thread, as it may block."""
        positive(batch_size, name="batch_size")
        counter = RowCounter()
        messages = UpsertBatches(self._transport, self._catalog, counter).messages(items, batch_size)
        async with aclosing(self._transport.exchange(UPSERT, messages, window=_WINDOW)) as answers:
            async for _, answer in answers:
                counter.count(answer.results)
                if progress is not None:
                    await notify(progress, counter.summary())
        return counter.summary()

    async def get(self, item_id: str) -> Item:
        """Reads one item."""
        found = await self.get_many([one_id(item_id, name="item_id")])
        if not found.items:
            raise ItemNotFound(
                f"no item {item_id!r} in catalog {self._catalog!r}; list the items to see their ids",
                metadata={"item_id": item_id, "catalog": self._catalog},
            )
        return found.items[0]

    async def get_many(self, item_ids: Iterable[str]) -> ItemsFound:
        """Reads items by id."""
        ids = id_list(item_ids, name="item_ids")
        items: list[Item] = []
        missing: list[str] = []
        limits = await self._transport.limits()
        for piece in cut(
            ids,
            bytes_of=utf8_bytes,
            max_count=min(_GET_ITEMS_PER_CALL, limits.max_ids_per_call),
            max_bytes=await self._transport.message_bytes(),
        ):
            answer = await self._transport.unary(GET, items_pb2.GetItemsRequest(catalog=self._catalog, item_ids=piece))
            items.extend(_from_wire(item) for item in answer.items)
            missing.extend(answer.missing_item_ids)
        return ItemsFound(tuple(items), tuple(missing))

    async def list(self, *, page_size: int = 1_000) -> AsyncIterator[Item]:
        """Iterates all items, ordered by id."""
        async with aclosing(self._pages(page_size)) as pages:
            async for page in pages:
                for item in page:
                    yield item

    async def _pages(self, page_size: int) -> AsyncGenerator[builtins.list[Item], None]:
        positive(page_size, name="page_size")
        token = ""
        while True:
            answer = await self._transport.unary(
                LIST, items_pb2.ListItemsRequest(catalog=self._catalog, page_size=page_size, page_token=token)
            )
            yield [_from_wire(item) for item in answer.items]
            token = answer.next_page_token
            if not token:
                return

    async def count(self) -> int:
        """How many items the catalog holds now."""
        answer = await self._transport.unary(LIST, items_pb2.ListItemsRequest(catalog=self._catalog, page_size=1))
        return answer.total_items

    async def delete(self, item_ids: Iterable[str]) -> DeleteSummary:
        """Deletes items."""
        ids = id_list(item_ids, name="item_ids")
        deleted = 0
        missing: list[str] = []
        limits = await self._transport.limits()
        max_bytes = await self._transport.message_bytes()
        for piece in cut(ids, bytes_of=utf8_bytes, max_count=limits.max_ids_per_call, max_bytes=max_bytes):
            answer = await self._transport.unary(
                DELETE, items_pb2.DeleteItemsRequest(catalog=self._catalog, item_ids=piece)
            )
            deleted += answer.deleted
            missing.extend(answer.missing_item_ids)
        return DeleteSummary(deleted, tuple(missing))

    async def picture(self, sha256: str) -> bytes:
        """Downloads a picture."""
        request = items_pb2.GetPictureRequest(
            catalog=self._catalog, sha256=one_id(sha256, name="sha256").removeprefix("sha256:")
        )

        async def attempt(_: float | None) -> bytes:
            async with aclosing(self._transport.stream(GET_PICTURE, request)) as chunks:
                return b"".join([chunk.data async for chunk in chunks])

        return await self._transport.retrying(attempt, seconds=None, idempotent=True)


class Items:
    """The items of one catalog."""

    def __init__(self, core: AsyncItems, loop: EventLoopThread) -> None:
        self._core = core
        self._loop = loop

    def upsert(
        self,
        items: Iterable[Item | RejectedRow],
        *,
        batch_size: int = 500,
        progress: Callable[[UpsertSummary], object] | None = None,
    ) -> UpsertSummary:
        """Inserts or replaces items, streaming: memory holds a few batches at a time, whatever comes.

        An item replaces the one with its id as a whole. Unchanged items are not written again. Pictures given as
        `Path` or `bytes` are uploaded first, only those that the server lacks; one that cannot be read or is refused
        leaves the item without a picture and stands in `picture_problems`.

        Args:
            items: The items. Rows that a reader rejected (`dmesr.readers`) may be among them; they are counted.
                The iterable runs in the calling thread, so it may block, and may use this client itself.
            batch_size: Rows of one message at most; each batch is durable as a whole.
            progress: Called with the counts so far after each batch, in the calling thread.

        Raises:
            CatalogNotFound: The catalog does not exist.
            ServerUnavailable: The server went away. Batches that were answered are stored; upsert again, what is
                there already costs nothing.
        """
        return self._loop.run(self._core.upsert(items, batch_size=batch_size, progress=progress))

    def get(self, item_id: str) -> Item:
        """Reads one item.

        Raises:
            ItemNotFound: No item has that id.
        """
        return self._loop.run(self._core.get(item_id))

    def get_many(self, item_ids: Iterable[str]) -> ItemsFound:
        """Reads items by id, in the order asked for; unknown ids are named apart."""
        return self._loop.run(self._core.get_many(item_ids))

    def list(self, *, page_size: int = 1_000) -> Iterator[Item]:
        """Iterates all items, ordered by id. The next page is fetched while this one is used.

        Args:
            page_size: Items of one call, 1,000 at most.
        """
        for page in self._loop.iterate(lambda: self._core._pages(page_size), prefetch=1):
            yield from page

    def count(self) -> int:
        """How many items the catalog holds now."""
        return self._loop.run(self._core.count())

    def delete(self, item_ids: Iterable[str]) -> DeleteSummary:
        """Deletes items with their descriptions, their vectors and their places in the live indexes."""
        return self._loop.run(self._core.delete(item_ids))

    def picture(self, sha256: str) -> bytes:
        """Downloads a picture.

        Args:
            sha256: The hash, with or without the "sha256:" in front that an item's picture has.

        Raises:
            PictureNotFound: The server has no such picture.
        """
        return self._loop.run(self._core.picture(sha256))
