"""Items: what the catalogue holds, and the pictures that belong to them."""

from __future__ import annotations

import builtins
import math
import numbers
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Final, Literal, TypeAlias

from dmesr.arguments import cut, id_list, one_id, positive, utf8_bytes
from dmesr.bridge import EventLoopThread, in_chunks, notify
from dmesr.errors import InvalidInput, ItemNotFound
from dmesr.pictures import PictureUpload
from dmesr.rows import Problem, RejectedRow, RowCounter, UpsertSummary, to_time
from dmesr.transport import Rpc, Transport
from dmesr.v1 import items_pb2

UPSERT = Rpc("ItemService/UpsertItems", items_pb2.UpsertItemsRequest, items_pb2.UpsertItemsResponse)
GET = Rpc("ItemService/GetItems", items_pb2.GetItemsRequest, items_pb2.GetItemsResponse, idempotent=True)
LIST = Rpc("ItemService/ListItems", items_pb2.ListItemsRequest, items_pb2.ListItemsResponse, idempotent=True)
DELETE = Rpc("ItemService/DeleteItems", items_pb2.DeleteItemsRequest, items_pb2.DeleteItemsResponse)
GET_PICTURE = Rpc("ItemService/GetPicture", items_pb2.GetPictureRequest, items_pb2.GetPictureResponse, idempotent=True)

# One answer holds whole items; this keeps it well below what a process should have to take at once.
_GET_ITEMS_PER_CALL = 1_000


class KeepPicture(Enum):
    """The type of :data:`KEEP_PICTURE`."""

    KEEP_PICTURE = "keep"


#: As an item's picture: keep whatever picture the item has on the server.
KEEP_PICTURE: Final = KeepPicture.KEEP_PICTURE

Scalar: TypeAlias = str | int | float | bool
AttributeValue: TypeAlias = Scalar | Sequence[Scalar]
Picture: TypeAlias = Path | bytes | str | Literal[KeepPicture.KEEP_PICTURE] | None


@dataclass(frozen=True)
class Item:
    """An item of the catalogue.

    Attributes:
        item_id: The caller's own id, unique within the catalog.
        attributes: What is known about the item, in the order in which prompts tell it. Numbers travel as their
            decimal text; None and NaN mean that the item has no such attribute. After reading: name to list of text.
        picture: A `Path` or `bytes` is uploaded, if the server lacks it. Text is "sha256:HEX" of a picture on the
            server, or else a URI that the *server* reads. `KEEP_PICTURE` leaves the picture as it is; None takes it
            away. After reading: "sha256:HEX" or None.
        update_time: When the item last changed. Set by the server.
    """

    item_id: str
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    picture: Picture = None
    update_time: datetime | None = None

    @property
    def title(self) -> str:
        """The first value of "title" or else "name"; the id where the item has neither."""
        for name in ("title", "name"):
            values = _texts(self.attributes.get(name))
            if values:
                return values[0]
        return self.item_id


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


def _texts(value: object) -> list[str]:
    """The values of one attribute as text.

    Raises:
        TypeError: A value is neither text, number nor truth value.
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, Iterable) and not isinstance(value, Mapping | bytes | bytearray):
        return [text for element in value if (text := _text(element)) is not None]
    text = _text(value)
    return [] if text is None else [text]


def _text(value: object) -> str | None:
    if isinstance(value, str):
        return value
    if value is None:
        return None
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):  # NumPy's, without importing it
        return "true" if value else "false"
    if isinstance(value, numbers.Real):
        return None if math.isnan(value) else str(value)
    raise TypeError(type(value).__name__)


def _to_wire(item: Item, picture: items_pb2.PictureRef | None) -> items_pb2.Item | RejectedRow:
    if not isinstance(item.item_id, str):
        kind = type(item.item_id).__name__
        return RejectedRow(
            str(item.item_id),
            "INVALID_ITEM_ID",
            f"the item id {item.item_id!r} is of type {kind}; expected text: pass {str(item.item_id)!r}",
            {"item_id": str(item.item_id), "type": kind},
        )
    attributes: list[items_pb2.Attribute] = []
    for name, value in item.attributes.items():
        try:
            if values := _texts(value):
                attributes.append(items_pb2.Attribute(name=name, values=values))
        except (TypeError, UnicodeEncodeError) as error:
            return RejectedRow(
                item.item_id,
                "INVALID_ATTRIBUTE",
                f"attribute {name!r} of item {item.item_id!r} cannot be sent ({error}); a name is text, a value is "
                "text, a number, a truth value or a list of these",
                {"item_id": item.item_id, "attribute": str(name), "error": str(error)},
            )
    try:
        return items_pb2.Item(item_id=item.item_id, attributes=attributes, picture=picture)
    except UnicodeEncodeError as error:
        return RejectedRow(
            ascii(item.item_id),
            "INVALID_ITEM_ID",
            f"the item id {item.item_id!a} is no valid Unicode text ({error.reason}); correct it",
            {"item_id": ascii(item.item_id), "error": error.reason},
        )


def _from_wire(item: items_pb2.Item) -> Item:
    return Item(
        item_id=item.item_id,
        attributes={attribute.name: list(attribute.values) for attribute in item.attributes},
        picture=f"sha256:{item.picture.sha256}" if item.picture.sha256 else None,
        update_time=to_time(item.update_time),
    )


class _UpsertBatches:
    """Turns the user's items into messages: pictures settled, each message below the limit."""

    def __init__(self, transport: Transport, catalog: str, counter: RowCounter) -> None:
        self._transport = transport
        self._catalog = catalog
        self._counter = counter
        self._pictures = PictureUpload(transport, catalog)

    async def messages(
        self, items: Iterable[Item | RejectedRow] | AsyncIterable[Item | RejectedRow], batch_size: int
    ) -> AsyncGenerator[tuple[items_pb2.UpsertItemsRequest, Literal[True] | None], None]:
        limits = await self._transport.limits()
        max_bytes = await self._transport.message_bytes()
        size = min(batch_size, limits.max_items_per_batch, limits.max_ids_per_call)
        async with aclosing(in_chunks(items, size)) as chunks:
            async for chunk in chunks:
                rows = await self._rows(chunk, max_bytes)
                for batch in cut(rows, bytes_of=items_pb2.Item.ByteSize, max_count=size, max_bytes=max_bytes):
                    yield items_pb2.UpsertItemsRequest(catalog=self._catalog, items=batch), True

    async def _rows(self, chunk: Sequence[Item | RejectedRow], max_bytes: int) -> list[items_pb2.Item]:
        items: list[Item] = []
        for element in chunk:
            if isinstance(element, RejectedRow):
                self._counter.reject(element)
            elif isinstance(element, Item):
                items.append(element)
            else:
                raise InvalidInput(f"expected items of type dmesr.Item, got {type(element).__name__}: {element!r:.80}")
        uploads = {n: item.picture for n, item in enumerate(items) if isinstance(item.picture, Path | bytes)}
        settled = await self._pictures.settle(uploads) if uploads else {}
        rows: list[items_pb2.Item] = []
        for position, item in enumerate(items):
            row = _to_wire(item, self._reference(item, settled.get(position)))
            if isinstance(row, items_pb2.Item):
                row_bytes = row.ByteSize()
                if row_bytes <= max_bytes:
                    rows.append(row)
                    continue
                row = RejectedRow(
                    item.item_id if len(item.item_id) < 1_000 else f"{item.item_id[:1_000]}…",
                    "ATTRIBUTES_TOO_LARGE",
                    f"the item has {row_bytes} bytes of id and attributes; one message takes {max_bytes}: shorten it",
                    {"size_bytes": str(row_bytes), "max_bytes": str(max_bytes)},
                )
            self._counter.reject(row)
        return rows

    def _reference(self, item: Item, settled: str | Problem | None) -> items_pb2.PictureRef | None:
        match item.picture:
            case KeepPicture.KEEP_PICTURE:
                return items_pb2.PictureRef(keep=True)
            case str(text) if text.startswith("sha256:"):
                return items_pb2.PictureRef(sha256=text.removeprefix("sha256:"))
            case str(uri):
                return items_pb2.PictureRef(uri=uri)
        if isinstance(settled, Problem):
            metadata = {"item_id": str(item.item_id), **settled.metadata}
            self._counter.reject_picture(RejectedRow(str(item.item_id), settled.reason, settled.message, metadata))
            return None
        return items_pb2.PictureRef(sha256=settled) if settled is not None else None


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
        messages = _UpsertBatches(self._transport, self._catalog, counter).messages(items, batch_size)
        async with aclosing(self._transport.exchange(UPSERT, messages)) as answers:
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
