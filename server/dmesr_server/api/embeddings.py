"""EmbeddingService: the vectors of items, raw by source or adapted by a model."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import grpc
import pyarrow as pa
from dmesr.v1 import embeddings_pb2 as pb
from dmesr.v1 import embeddings_pb2_grpc
from grpc.aio import ServicerContext

from dmesr_server.api import recipes, translation, validation, vector_intake, vectors
from dmesr_server.api.grouping import grouped, one_ahead
from dmesr_server.api.neighbours import NeighbourSearches
from dmesr_server.api.parts import Parts
from dmesr_server.api.places import place_of, refuse_unknown
from dmesr_server.api.read_ahead import read_ahead
from dmesr_server.api.working import in_thread
from dmesr_server.errors import ServiceError, invalid_field
from dmesr_server.serving import sampling
from dmesr_server.store import AdaptedTable, CatalogStore, EmbeddingTable, VectorIndex

_Context = ServicerContext[Any, Any]
_MAX_TTL_SECONDS = 7 * 24 * 3600
_DEFAULT_TTL_SECONDS = 3600
_GROUP_BYTES = 32 * 1024 * 1024  # of writes that are taken together
_TAKE_BYTES = 8 * 1024 * 1024  # of vectors looked up by id at a time


@dataclass(frozen=True)
class _Reading:
    """An answer about to be streamed."""

    first: pb.ReadEmbeddingsResponse
    messages: Iterator[bytes]


def register(servicer: EmbeddingServicer, server: Any) -> None:
    """Adds the service to a server.

    ReadEmbeddings comes first and by itself: gRPC takes the first handler that knows a method, and the generated one
    would have protobuf copy each message twice that lies ready as bytes.
    """
    read = grpc.unary_stream_rpc_method_handler(
        servicer.ReadEmbeddings, pb.ReadEmbeddingsRequest.FromString, _serialised
    )
    name = pb.DESCRIPTOR.services_by_name["EmbeddingService"].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"ReadEmbeddings": read}),))
    embeddings_pb2_grpc.add_EmbeddingServiceServicer_to_server(servicer, server)


def _serialised(answer: pb.ReadEmbeddingsResponse | bytes) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


class EmbeddingServicer(embeddings_pb2_grpc.EmbeddingServiceServicer):
    """Reads and writes vectors."""

    def __init__(self, parts: Parts):
        self._parts = parts
        self._limits = parts.config.limits
        self._searches = NeighbourSearches(parts)

    async def ListRecipes(self, request: pb.ListRecipesRequest, context: _Context) -> pb.ListRecipesResponse:
        """Lists the catalog's recipes, newest first."""
        return await in_thread(self._list_recipes, request)

    async def GetEmbeddingStats(
        self, request: pb.GetEmbeddingStatsRequest, context: _Context
    ) -> pb.GetEmbeddingStatsResponse:
        """Tells what a recipe holds."""
        return await in_thread(self._stats, request)

    async def ReadEmbeddings(  # type: ignore[override]  # bytes go out as they are
        self, request: pb.ReadEmbeddingsRequest, context: _Context
    ) -> AsyncIterator[pb.ReadEmbeddingsResponse | bytes]:
        """Streams vectors. gRPC's flow control holds the reading back.

        Yields:
            The first message, and then messages that are serialised already: see :func:`register`.
        """
        reading = await in_thread(self._open, request)
        yield reading.first
        async with contextlib.aclosing(read_ahead(reading.messages)) as messages:
            async for message in messages:
                yield message

    async def WriteEmbeddings(
        self, request_iterator: AsyncIterator[pb.WriteEmbeddingsRequest], context: _Context
    ) -> AsyncIterator[pb.WriteEmbeddingsResponse]:
        """Takes vectors of the caller's own; a batch is answered when it is durable."""
        requests = grouped(
            vector_intake.incoming(request_iterator),
            room=self._parts.upload_room,
            max_bytes=_GROUP_BYTES,
            size=attrgetter("size"),
        )
        intake = vector_intake.VectorIntake(self._parts)
        # While a group is committed the next one is judged, and the one before answered.
        judged = one_ahead(requests, intake.judge)
        committed = one_ahead(judged, intake.store)
        async with contextlib.aclosing(requests), contextlib.aclosing(judged), contextlib.aclosing(committed):
            async for stored in committed:
                for answer in await in_thread(vector_intake.answers, stored):
                    yield answer
                if stored.error is not None:
                    raise stored.error

    async def FindNeighbours(self, request: pb.FindNeighboursRequest, context: _Context) -> pb.FindNeighboursResponse:
        """Finds the nearest items."""
        return await self._searches.find(request)

    async def PinEmbeddings(self, request: pb.PinEmbeddingsRequest, context: _Context) -> pb.PinEmbeddingsResponse:
        """Keeps the newest version readable for a time."""
        return await in_thread(self._pin, request)

    async def ReleasePin(self, request: pb.ReleasePinRequest, context: _Context) -> pb.ReleasePinResponse:
        """Gives a pin back."""
        return await in_thread(self._release, request)

    def _list_recipes(self, request: pb.ListRecipesRequest) -> pb.ListRecipesResponse:
        row, catalog = self._parts.catalog(request.catalog)
        rows = self._parts.control.recipes.list(row.name)
        return pb.ListRecipesResponse(
            recipes=[recipes.message(self._parts.control, recipe, catalog) for recipe in rows]
        )

    def _stats(self, request: pb.GetEmbeddingStatsRequest) -> pb.GetEmbeddingStatsResponse:
        row, catalog = self._parts.catalog(request.catalog)
        recipe = self._parts.control.recipes.resolve(row.name, validation.recipe_ref(request.recipe))
        table = catalog.embeddings(recipe.recipe_id)
        wire = recipes.message(self._parts.control, recipe, catalog)
        items = catalog.items.count()
        samples = sampling.sample(table, [source.name for source in wire.sources])
        return pb.GetEmbeddingStatsResponse(
            recipe=wire,
            items=items,
            rows=table.count(),
            version=table.version(),
            sources=[
                pb.SourceStats(
                    source=source,
                    coverage=source.present / items if items else 0.0,
                    mean_norm=samples[source.name].mean_norm,
                    mean_pair_cosine=samples[source.name].mean_pair_cosine,
                    index=self._index(catalog, table, source.name),
                )
                for source in wire.sources
            ],
        )

    def _index(self, catalog: CatalogStore, table: EmbeddingTable, source: str) -> pb.VectorIndex | None:
        record = self._parts.neighbours.record(catalog, table, source)
        state = VectorIndex(table, source).state()
        if record is None or state is None:
            return None
        return pb.VectorIndex(
            kind=record.kind,
            indexed_rows=state.indexed_rows,
            unindexed_rows=state.unindexed_rows,
            recall_at_10=record.recall,
            recall_sample=record.sample,
            build_time=translation.timestamp(record.built),
        )

    def _open(self, request: pb.ReadEmbeddingsRequest) -> _Reading:
        ids = validation.ids("item_ids", request.item_ids, self._limits)
        if request.version < 0:
            raise invalid_field("version", f"must be 0 (the newest) or a version, got {request.version}")
        if request.data_type not in pb.DataType.values():
            raise invalid_field("data_type", f"must be one of the enum, got {request.data_type}")
        place = place_of(self._parts, request)
        # Settled once: all of the stream is of one version, whatever is written meanwhile.
        version = request.version or place.table.version()
        dims = place.table.sources(version)
        names = validation.distinct(request.sources) or list(dims)
        for name in names:
            refuse_unknown(name, dims)
        fingerprint = place.table.fingerprint(names, version) if _asks_for_fingerprint(request) else ""
        stream = vectors.VectorStream(
            [vectors.WireSource(name, dims[name]) for name in names], half=request.data_type == pb.DATA_TYPE_FLOAT16
        )
        first = pb.ReadEmbeddingsResponse(
            data=stream.head(),
            recipe_id=place.recipe_id,
            model=place.model,
            version=version,
            fingerprint=fingerprint,
            unchanged=fingerprint in request.known_fingerprints,
        )
        if first.unchanged:
            return _Reading(first=first, messages=iter([stream.tail()]))
        if ids:
            first.rows, batches = len(ids), _taken(place.table, ids, names, dims, version)
        else:
            first.rows = place.table.count(version)
            batches = place.table.scan(names, version, stream.batch_bytes)
        return _Reading(first=first, messages=_messages(stream, batches))

    def _pin(self, request: pb.PinEmbeddingsRequest) -> pb.PinEmbeddingsResponse:
        row, catalog = self._parts.catalog(request.catalog)
        if request.ttl_seconds < 0:
            raise invalid_field("ttl_seconds", f"must not be negative, got {request.ttl_seconds}")
        ttl = min(request.ttl_seconds or _DEFAULT_TTL_SECONDS, _MAX_TTL_SECONDS)
        control = self._parts.control
        recipe = control.recipes.resolve(row.name, validation.recipe_ref(request.recipe))
        table = catalog.embeddings(recipe.recipe_id)
        version = table.version()
        if not version:
            raise ServiceError(
                "VERSION_NOT_FOUND",
                f"recipe {recipe.recipe_id} has no vectors yet, so there is nothing to pin; run an enrichment job",
                recipe=recipe.recipe_id,
            )
        tag = f"pin-{uuid.uuid4().hex}"
        # The row first: should this process die in between, the sweep finds the pin and looks for its tag.
        pin = control.pins.create(row.name, recipe.recipe_id, version, ttl, request.holder[:200], tag)
        try:
            table.pin(tag, version)
            digest = table.digest(version)
        except ServiceError:
            control.pins.release(pin.pin_id)
            raise
        return pb.PinEmbeddingsResponse(
            pin_id=pin.pin_id,
            recipe_id=recipe.recipe_id,
            version=version,
            expire_time=translation.timestamp(pin.expire_time),
            digest=digest,
        )

    def _release(self, request: pb.ReleasePinRequest) -> pb.ReleasePinResponse:
        validation.required(pin_id=request.pin_id)
        pin = self._parts.control.pins.get(request.pin_id)
        # The tag first: a row without a tag is swept, a tag without a row would stay for ever.
        self._parts.store.catalog(pin.catalog).embeddings(pin.recipe_id).unpin(pin.tag)
        self._parts.control.pins.release(pin.pin_id)
        return pb.ReleasePinResponse()


def _asks_for_fingerprint(request: pb.ReadEmbeddingsRequest) -> bool:
    return request.want_fingerprint or bool(request.known_fingerprints)


def _taken(
    table: EmbeddingTable | AdaptedTable, ids: Sequence[str], names: Sequence[str], dims: dict[str, int], version: int
) -> Iterator[pa.Table]:
    step = max(1, _TAKE_BYTES // (64 + 4 * sum(dims[name] for name in names)))
    for start in range(0, len(ids), step):
        yield table.take(ids[start : start + step], names, version)


def _messages(stream: vectors.VectorStream, batches: Iterator[pa.RecordBatch | pa.Table]) -> Iterator[bytes]:
    for batch in batches:
        yield from stream.messages(batch)
    yield stream.tail()
