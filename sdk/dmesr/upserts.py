"""Items on their way to the server: each row made fit to travel or rejected alone, pictures first."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Literal

from dmesr.arguments import cut
from dmesr.bridge import in_chunks
from dmesr.errors import InvalidInput
from dmesr.item import Item, KeepPicture, attribute_texts
from dmesr.pictures import PictureUpload
from dmesr.rows import Problem, RejectedRow, RowCounter
from dmesr.transport import Transport
from dmesr.v1 import items_pb2


class UpsertBatches:
    """Turns the user's items into messages: pictures settled, each message below the limit."""

    def __init__(self, transport: Transport, catalog: str, counter: RowCounter) -> None:
        self._transport = transport
        self._catalog = catalog
        self._counter = counter
        self._pictures = PictureUpload(transport, catalog)

    async def messages(
        self, items: Iterable[Item | RejectedRow] | AsyncIterable[Item | RejectedRow], batch_size: int
    ) -> AsyncGenerator[tuple[items_pb2.UpsertItemsRequest, Literal[True] | None], None]:
        """The messages of one upsert; each is answered.

        Args:
            items: The user's items. What cannot travel is counted as rejected and left out.
            batch_size: Rows of one message at most; fewer where the server's limits ask for it.

        Raises:
            InvalidInput: Something among the items is no item.
        """
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
                    item.item_id[:1_000],
                    "ATTRIBUTES_TOO_LARGE",
                    f"the item has {row_bytes} bytes of id and attributes; one message takes {max_bytes}: shorten it",
                    {"item_id": item.item_id[:1_000], "size_bytes": str(row_bytes), "max_bytes": str(max_bytes)},
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
            case Problem() as problem:
                settled = problem
        if settled is None and item.picture is not None:
            kind = type(item.picture).__name__
            message = f"the picture is of type {kind}; expected a pathlib.Path, bytes, or text that names one"
            settled = Problem("PICTURE_UNREADABLE", message, {"type": kind})
        if isinstance(settled, Problem):
            metadata = {"item_id": str(item.item_id), **settled.metadata}
            self._counter.reject_picture(RejectedRow(str(item.item_id), settled.reason, settled.message, metadata))
            return None
        return None if settled is None else items_pb2.PictureRef(sha256=settled)


def _to_wire(item: Item, picture: items_pb2.PictureRef | None) -> items_pb2.Item | RejectedRow:
    if not isinstance(item.item_id, str):
        kind = type(item.item_id).__name__
        return RejectedRow(
            str(item.item_id),
            "INVALID_ITEM_ID",
            f"the item id {item.item_id!r} is of type {kind}; expected text: pass {str(item.item_id)!r}",
            {"item_id": str(item.item_id), "type": kind},
        )
    if not isinstance(item.attributes, Mapping):
        kind = type(item.attributes).__name__
        return RejectedRow(
            item.item_id,
            "INVALID_ATTRIBUTE",
            f"the attributes of item {item.item_id!r} are of type {kind}; expected a mapping of name to value",
            {"item_id": item.item_id, "type": kind},
        )
    attributes: list[items_pb2.Attribute] = []
    for name, value in item.attributes.items():
        try:
            if values := attribute_texts(value):
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
