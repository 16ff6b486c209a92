"""Takes in pictures in chunks.

What is whole by the time of a write is written together: a commit costs much more than a row.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from dmesr.v1 import items_pb2 as pb

from dmesr_server.api import translation, validation
from dmesr_server.api.item_intake import put
from dmesr_server.api.parts import Parts
from dmesr_server.api.pictures import IncomingPicture, NewPicture, RawPicture, inspected
from dmesr_server.api.working import in_thread
from dmesr_server.errors import ServiceError
from dmesr_server.store import CatalogStore

_QUEUED_MESSAGES = 8  # read ahead while a group is being written: at most 8 · max_message_bytes
_GROUP_BYTES = 8 * 1024 * 1024
_GROUP_PICTURES = 128

_Queue = asyncio.Queue[pb.UploadPicturesRequest | Exception | None]


async def uploaded(
    parts: Parts, requests: AsyncIterator[pb.UploadPicturesRequest]
) -> AsyncIterator[pb.UploadPicturesResponse]:
    """Answers each picture, in order, once it is durable or refused.

    Args:
        parts: The server's parts.
        requests: Chunks; those of a picture follow each other.

    Raises:
        ServiceError: Of the whole call: CATALOG_NOT_FOUND, or the store's own. What came before is written first.
    """
    queue: _Queue = asyncio.Queue(_QUEUED_MESSAGES)
    reader = asyncio.create_task(_read(requests, queue))
    try:
        group = _Group(parts)
        while True:
            await asyncio.sleep(0)  # lets the reader fill the queue: what waits there joins the group
            if group.is_full or (queue.empty() and group.pictures):
                for answer in await in_thread(group.write):
                    yield answer
                if group.failure is not None:
                    raise group.failure
            message = await queue.get()
            if isinstance(message, pb.UploadPicturesRequest):
                group.take(message)
                continue
            group.end()
            for answer in await in_thread(group.write):
                yield answer
            failure = group.failure or message
            if failure is not None:
                raise failure
            return
    finally:
        reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reader


async def _read(requests: AsyncIterator[pb.UploadPicturesRequest], queue: _Queue) -> None:
    try:
        async for request in requests:
            await queue.put(request)
        await queue.put(None)
    except Exception as error:  # whoever reads the queue raises it
        await queue.put(error)


class _Group:
    """The picture whose chunks are coming, and whole ones that will be written together."""

    def __init__(self, parts: Parts):
        self._parts = parts
        self._open: IncomingPicture | None = None
        self.pictures: list[IncomingPicture] = []
        self.failure: ServiceError | None = None  # what ends the call, once the answers before it are out

    @property
    def is_full(self) -> bool:
        """True when it should be written before more is read."""
        size = sum(picture.size for picture in self.pictures)
        return size >= _GROUP_BYTES or len(self.pictures) >= _GROUP_PICTURES

    def take(self, message: pb.UploadPicturesRequest) -> None:
        """Takes the next chunk."""
        catalog = validation.catalog_name(message.catalog)
        if self._open is not None and (message.sha256, catalog) != (self._open.sha256, self._open.catalog):
            self.end()
        if self._open is None:
            self._open = IncomingPicture(catalog=catalog, sha256=message.sha256, limits=self._parts.config.limits)
        self._open.add(message.data)
        if message.last:
            self.end()

    def end(self) -> None:
        """The open picture has no more chunks. If it was cut short its hash will tell."""
        if self._open is not None:
            self.pictures.append(self._open)
            self._open = None

    def write(self) -> Sequence[pb.UploadPicturesResponse]:
        """Checks and writes the whole pictures; one answer for each, in order."""
        waiting, self.pictures = self.pictures, []
        pictures: list[IncomingPicture] = []
        catalogs: dict[str, CatalogStore] = {}
        for incoming in waiting:
            try:
                if incoming.catalog not in catalogs:
                    _, catalogs[incoming.catalog] = self._parts.catalog(incoming.catalog)
            except ServiceError as error:
                self.failure = error
                break
            pictures.append(incoming)
        answers = [
            pb.UploadPicturesResponse(sha256=incoming.sha256, outcome=pb.ROW_OUTCOME_UNCHANGED) for incoming in pictures
        ]
        sound: dict[str, dict[str, NewPicture]] = {}  # catalog → sha256 → picture
        for incoming, answer, seen in zip(pictures, answers, self._seen(pictures), strict=True):
            if isinstance(seen, ServiceError):
                answer.outcome = pb.ROW_OUTCOME_REJECTED
                answer.problem.CopyFrom(translation.row_problem(seen))
            else:
                sound.setdefault(incoming.catalog, {})[seen.sha256] = seen
        new: set[tuple[str, str]] = set()
        for name, by_hash in sound.items():
            were_new = put(catalogs[name], list(by_hash.values()))
            new |= {(name, sha256) for sha256, was_new in zip(by_hash, were_new, strict=True) if was_new}
        for incoming, answer in zip(pictures, answers, strict=True):
            place = (incoming.catalog, incoming.sha256)
            if answer.outcome == pb.ROW_OUTCOME_UNCHANGED and place in new:
                answer.outcome = pb.ROW_OUTCOME_INSERTED
                new.discard(place)  # the same picture again in this group was there by then
        return answers

    def _seen(self, pictures: Sequence[IncomingPicture]) -> list[NewPicture | ServiceError]:
        came: list[RawPicture | ServiceError] = []
        for incoming in pictures:
            try:
                came.append(incoming.finish())
            except ServiceError as error:
                came.append(error)
        whole = [picture for picture in came if isinstance(picture, RawPicture)]
        looked_at = iter(inspected(whole, self._parts.config.limits, decoders=self._parts.decoders))
        return [picture if isinstance(picture, ServiceError) else next(looked_at) for picture in came]
