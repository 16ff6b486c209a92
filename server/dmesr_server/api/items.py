"""ItemService: the items of a catalog and their pictures."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dmesr.v1 import items_pb2 as pb
from dmesr.v1 import items_pb2_grpc
from grpc.aio import ServicerContext

from dmesr_server.api import item_intake, translation, validation
from dmesr_server.api.grouping import grouped
from dmesr_server.api.parts import Parts
from dmesr_server.api.picture_fetching import Fetched, fetched
from dmesr_server.api.picture_upload import uploaded
from dmesr_server.api.working import in_thread
from dmesr_server.errors import ServiceError

_CHUNK_BYTES = 1024 * 1024
_GROUP_BYTES = 8 * 1024 * 1024  # of batches of items that are taken together
_Context = ServicerContext[Any, Any]


@dataclass
class _Taken:
    """What became of batches that came in together: answers from the first on, and what ended them."""

    answers: list[list[pb.RowResult]] = field(default_factory=list)
    changed: set[str] = field(default_factory=set)  # catalogs
    error: ServiceError | None = None


class ItemServicer(items_pb2_grpc.ItemServiceServicer):
    """Reads and writes the items of a catalog."""

    def __init__(self, parts: Parts):
        self._parts = parts
        self._limits = parts.config.limits

    async def UpsertItems(
        self, request_iterator: AsyncIterator[pb.UpsertItemsRequest], context: _Context
    ) -> AsyncIterator[pb.UpsertItemsResponse]:
        """Inserts or replaces items; a batch is answered when it is durable."""
        requests = grouped(
            request_iterator,
            room=self._parts.upload_room,
            max_bytes=_GROUP_BYTES,
            size=pb.UpsertItemsRequest.ByteSize,
        )
        async with contextlib.aclosing(requests):
            async for group in requests:
                pictures = await fetched(self._parts, group)
                taken = await in_thread(self._upsert, group, pictures)
                for catalog in taken.changed:
                    # Before the answer: a caller who was answered can rely on the job.
                    await self._parts.auto_enrichment.ensure(catalog)
                for results in taken.answers:
                    yield pb.UpsertItemsResponse(results=results)
                if taken.error is not None:
                    raise taken.error

    async def GetItems(self, request: pb.GetItemsRequest, context: _Context) -> pb.GetItemsResponse:
        """Reads items by id."""
        return await in_thread(self._get, request)

    async def ListItems(self, request: pb.ListItemsRequest, context: _Context) -> pb.ListItemsResponse:
        """Lists items by id."""
        return await in_thread(self._list, request)

    async def DeleteItems(self, request: pb.DeleteItemsRequest, context: _Context) -> pb.DeleteItemsResponse:
        """Deletes items and all that was made from them."""
        return await in_thread(self._delete, request)

    async def FindMissingPictures(
        self, request: pb.FindMissingPicturesRequest, context: _Context
    ) -> pb.FindMissingPicturesResponse:
        """Tells which pictures the server lacks."""
        return await in_thread(self._missing_pictures, request)

    async def UploadPictures(
        self, request_iterator: AsyncIterator[pb.UploadPicturesRequest], context: _Context
    ) -> AsyncIterator[pb.UploadPicturesResponse]:
        """Takes pictures in chunks."""
        async for answer in uploaded(self._parts, request_iterator):
            yield answer

    async def GetPicture(
        self, request: pb.GetPictureRequest, context: _Context
    ) -> AsyncIterator[pb.GetPictureResponse]:
        """Sends a picture in chunks."""
        picture = await in_thread(self._picture, request)
        for start in range(0, len(picture.data), _CHUNK_BYTES):
            first = start == 0
            yield pb.GetPictureResponse(
                data=picture.data[start : start + _CHUNK_BYTES],
                media_type=picture.media_type if first else "",
                size_bytes=len(picture.data) if first else 0,
            )

    def _upsert(self, requests: Sequence[pb.UpsertItemsRequest], pictures: Mapping[str, Fetched]) -> _Taken:
        """Stores batches that have come in together, in as few commits as their order allows."""
        taken = _Taken()
        together: list[pb.UpsertItemsRequest] = []
        ids: set[str] = set()
        try:
            for request in requests:
                validation.catalog_name(request.catalog)
                validation.at_most("items", len(request.items), self._limits.max_items_per_batch, "max_items_per_batch")
                here = {item.item_id for item in request.items}
                # The same item again is another write, and what becomes of it is told of each. A batch that holds one
                # twice goes by itself: what is wrong is told by the rows' places.
                repeats = len(here) < len(request.items)
                if together and (repeats or request.catalog != together[0].catalog or not ids.isdisjoint(here)):
                    self._upsert_together(together, pictures, taken)
                    together, ids = [], set()
                together.append(request)
                ids |= here
                if repeats:
                    self._upsert_together(together, pictures, taken)
                    together, ids = [], set()
        except ServiceError as error:
            taken.error = error
        try:
            self._upsert_together(together, pictures, taken)
        except ServiceError as error:
            taken.error = error
        return taken

    def _upsert_together(
        self, requests: Sequence[pb.UpsertItemsRequest], pictures: Mapping[str, Fetched], taken: _Taken
    ) -> None:
        if not requests:
            return
        row, catalog = self._parts.catalog(requests[0].catalog)
        results = item_intake.upsert(
            catalog,
            [item for request in requests for item in request.items],
            limits=self._limits,
            picture_roots=self._parts.config.server.picture_roots,
            decoders=self._parts.decoders,
            fetched=pictures.get(row.name, {}),
        )
        if any(result.outcome != pb.ROW_OUTCOME_REJECTED for result in results):
            taken.changed.add(row.name)
        ends = itertools.accumulate(len(request.items) for request in requests)
        taken.answers += [results[end - len(request.items) : end] for request, end in zip(requests, ends, strict=True)]

    def _get(self, request: pb.GetItemsRequest) -> pb.GetItemsResponse:
        _, catalog = self._parts.catalog(request.catalog)
        ids = validation.ids("item_ids", request.item_ids, self._limits)
        found = catalog.items.get(validation.distinct(ids))
        return pb.GetItemsResponse(
            items=[translation.item(found[item_id]) for item_id in ids if item_id in found],
            missing_item_ids=[item_id for item_id in ids if item_id not in found],
        )

    def _list(self, request: pb.ListItemsRequest) -> pb.ListItemsResponse:
        row, catalog = self._parts.catalog(request.catalog)
        size = validation.page_size(request.page_size)
        after = validation.decode_page_token("ListItems", [row.name], request.page_token)
        stored = catalog.items.page(after, size + 1)  # one more tells whether there is a next page
        response = pb.ListItemsResponse(total_items=catalog.items.count())
        room = self._limits.max_message_bytes - 64 * 1024  # for the rest of the message
        for item in stored[:size]:
            wire = translation.item(item)
            room -= wire.ByteSize() + 8
            if room < 0 and response.items:
                break
            response.items.append(wire)
        if len(response.items) < len(stored):
            last = response.items[-1].item_id
            response.next_page_token = validation.encode_page_token("ListItems", [row.name], last)
        return response

    def _delete(self, request: pb.DeleteItemsRequest) -> pb.DeleteItemsResponse:
        row, catalog = self._parts.catalog(request.catalog)
        ids = validation.distinct(validation.ids("item_ids", request.item_ids, self._limits))
        outcome = catalog.delete_items(ids)
        self._parts.live.forget_items(catalog=row.name, item_ids=ids)
        self._parts.serving.vectors_changed()
        return pb.DeleteItemsResponse(deleted=outcome.deleted, missing_item_ids=outcome.missing)

    def _missing_pictures(self, request: pb.FindMissingPicturesRequest) -> pb.FindMissingPicturesResponse:
        _, catalog = self._parts.catalog(request.catalog)
        validation.at_most("sha256s", len(request.sha256s), self._limits.max_ids_per_call, "max_ids_per_call")
        asked = [validation.sha256(f"sha256s[{place}]", value) for place, value in enumerate(request.sha256s)]
        return pb.FindMissingPicturesResponse(missing_sha256s=catalog.pictures.missing(validation.distinct(asked)))

    def _picture(self, request: pb.GetPictureRequest) -> Any:
        _, catalog = self._parts.catalog(request.catalog)
        sha256 = validation.sha256("sha256", request.sha256)
        picture = catalog.pictures.get(sha256)
        if picture is None:
            raise ServiceError(
                "PICTURE_NOT_FOUND", f"no picture of the catalog hashes to {sha256}; upload it first", sha256=sha256
            )
        return picture
