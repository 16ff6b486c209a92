"""Bulk reads of vectors: from the server, or from what was kept of an earlier read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dmesr.arguments import cut, id_list, positive, utf8_bytes
from dmesr.arrow import VectorCollector, VectorPiece
from dmesr.errors import InvalidInput, MalformedArrow
from dmesr.transport import Rpc, Transport
from dmesr.v1 import embeddings_pb2
from dmesr.vector_batches import BatchCutter, VectorBatch
from dmesr.vector_cache import KeptVectors, VectorCache, rows_of
from dmesr.vectors import Embeddings

if TYPE_CHECKING:
    from dmesr.arrow import Mask

READ = Rpc(
    "EmbeddingService/ReadEmbeddings",
    embeddings_pb2.ReadEmbeddingsRequest,
    embeddings_pb2.ReadEmbeddingsResponse,
    idempotent=True,
    decode=VectorPiece.decoded,
)
DataType = Literal["float32", "float16"]

_KEPT_BLOCK_BYTES = 8 * 1024 * 1024  # above any message
_DATA_TYPES = {
    "float32": embeddings_pb2.DATA_TYPE_FLOAT32,
    "float16": embeddings_pb2.DATA_TYPE_FLOAT16,
}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which vectors to read. As the arguments of :meth:`dmesr.embeddings.CatalogEmbeddings.read`."""

    recipe: str
    model: str | None
    sources: Iterable[str] | None
    dtype: DataType
    version: int | None

    def request(self, catalog: str) -> embeddings_pb2.ReadEmbeddingsRequest:
        """The request for all items.

        Raises:
            InvalidInput: There is no such number format, or the sources are empty.
        """
        if self.dtype not in _DATA_TYPES:
            raise InvalidInput(f"dtype is {self.dtype!r}; expected 'float32' or 'float16'")
        names: tuple[str, ...] = ()
        if self.sources is not None:
            names = tuple(id_list(self.sources, name="sources", when_empty="pass None for all sources"))
        request = embeddings_pb2.ReadEmbeddingsRequest(
            catalog=catalog, sources=names, data_type=_DATA_TYPES[self.dtype], version=self.version or 0
        )
        if self.model is None:
            request.recipe = self.recipe
        else:
            request.model = self.model
        return request


async def read(
    transport: Transport, catalog: str, wanted: Wanted, *, item_ids: Iterable[str] | None, cache: VectorCache | None
) -> Embeddings:
    """Reads vectors: all items', or those of some ids in their order."""
    request = wanted.request(catalog)
    ids = None if item_ids is None else id_list(item_ids, name="item_ids", when_empty="pass None for all items")
    if cache is not None:
        request.want_fingerprint = True
        request.known_fingerprints.extend(await asyncio.to_thread(cache.known, catalog, wanted.dtype))
    while True:
        collector = VectorCollector()
        first = await _fetch(transport, collector, request, ids)
        if not first.unchanged:
            break
        assert cache is not None, "the server was told of nothing"
        kept = await asyncio.to_thread(cache.load, catalog, first.fingerprint, wanted.dtype)
        if kept is not None:
            return await asyncio.to_thread(_of_kept, kept, first, ids)
        request.known_fingerprints.remove(first.fingerprint)  # another process took it away meanwhile
    assert collector.found_N is not None
    if cache is not None and ids is None:
        kept = KeptVectors(collector.ids, collector.vectors, collector.present)
        await asyncio.to_thread(cache.keep, catalog, first.fingerprint, wanted.dtype, kept)
    return _embeddings(first, KeptVectors(collector.ids, collector.vectors, collector.present), collector.found_N)


def _of_kept(kept: KeptVectors, first: VectorPiece, ids: list[str] | None) -> Embeddings:
    import numpy as np

    if ids is None:
        return _embeddings(first, kept, np.ones(len(kept.ids), np.bool_))
    return _embeddings(first, *rows_of(kept, ids))


def _embeddings(first: VectorPiece, kept: KeptVectors, found_N: Mask) -> Embeddings:
    return Embeddings(
        ids=kept.ids,
        found=found_N,
        recipe_id=first.recipe_id,
        model=first.model or None,
        version=first.version,
        _vectors=kept.vectors,
        _present=kept.present,
    )


async def _fetch(
    transport: Transport,
    collector: VectorCollector,
    request: embeddings_pb2.ReadEmbeddingsRequest,
    ids: list[str] | None,
) -> VectorPiece:
    """Reads everything into the collector, in as many calls as the ids take; returns a first message."""
    pieces: list[list[str]] = [[]]  # on the wire, no ids means every item
    if ids is not None:
        collector.expect(len(ids))
        limits = await transport.limits()
        max_bytes = await transport.message_bytes()
        pieces = list(cut(ids, bytes_of=utf8_bytes, max_count=limits.max_ids_per_call, max_bytes=max_bytes))
    call = embeddings_pb2.ReadEmbeddingsRequest()
    call.CopyFrom(request)
    first = VectorPiece(b"")
    for piece in pieces:
        del call.item_ids[:]
        call.item_ids.extend(piece)
        first = await _fetch_once(transport, collector, call)
        if first.unchanged:
            return first
        call.version = first.version  # the pieces are of one version
        if first.model:
            call.model = first.model  # and of one model, should its alias move
    return first


async def _fetch_once(
    transport: Transport, collector: VectorCollector, request: embeddings_pb2.ReadEmbeddingsRequest
) -> VectorPiece:
    """Makes one call, from its start again when the server goes away; returns its first message."""
    before = len(collector.ids)
    _keep_blocks()

    async def attempt(_: float | None) -> VectorPiece:
        collector.rewind(before)
        first: VectorPiece | None = None
        async with aclosing(transport.stream(READ, request)) as answers:
            async for answer in answers:
                piece: VectorPiece = answer  # type: ignore[assignment]  # READ decodes by itself
                if first is None:
                    first = piece
                    if first.unchanged:
                        return first
                    if not request.item_ids:
                        collector.expect(first.rows)
                collector.feed(piece.data)
        expected = before + (len(request.item_ids) or (first.rows if first is not None else 0))
        if first is None or len(collector.ids) != expected or collector.found_N is None:
            raise MalformedArrow(
                f"the server sent {len(collector.ids) - before} of {expected - before} rows; read again"
            )
        return first

    return await transport.retrying(attempt, seconds=None, idempotent=True)


async def batches(
    transport: Transport, catalog: str, wanted: Wanted, *, rows: int, cache: VectorCache | None
) -> AsyncIterator[VectorBatch]:
    """Reads all items' vectors batch by batch. With a cache the first pass fills it, and later ones read from it."""
    positive(rows, name="rows")
    if cache is not None:
        whole = await read(transport, catalog, wanted, item_ids=None, cache=cache)
        for start in range(0, len(whole), rows):
            cut_at = slice(start, start + rows)
            yield VectorBatch(
                whole.ids[cut_at],
                {name: whole.matrix(name)[cut_at] for name in whole.sources},
                {name: whole.present(name)[cut_at] for name in whole.sources},
            )
        return
    request = wanted.request(catalog)
    cutter = BatchCutter(rows)
    expected = 0
    _keep_blocks()
    async with aclosing(transport.patient_stream(READ, request)) as answers:
        async for answer in answers:
            piece: VectorPiece = answer  # type: ignore[assignment]  # as above
            expected = expected or piece.rows
            for batch in cutter.feed(piece.data):
                yield batch
    for batch in cutter.rest(expected):
        yield batch


def _keep_blocks() -> None:
    """Lets messages use the same memory again.

    glibc gives large blocks back to the system when they are freed, and pays for their pages anew each time: for
    messages of a megabyte several times as much as for the copying. Once a block of this size was freed, it keeps
    blocks up to it for the next one.
    """
    bytes(_KEPT_BLOCK_BYTES)
