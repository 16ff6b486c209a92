"""Embeddings: the vectors of items, raw by source or adapted by a model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dmesr.arguments import cut, id_list, one_id, positive, utf8_bytes
from dmesr.arrow import VectorCollector, VectorPiece
from dmesr.bridge import EventLoopThread, in_chunks
from dmesr.errors import InvalidInput, MalformedArrow
from dmesr.pins import AsyncPin, Pin
from dmesr.recipes import EmbeddingStats, Recipe, SourceStats, recipe_from_wire, source_from_wire
from dmesr.rows import RowCounter, UpsertSummary, to_time
from dmesr.transport import Rpc, Transport
from dmesr.v1 import embeddings_pb2
from dmesr.vectors import Embeddings, checked, messages_of, query_vector

if TYPE_CHECKING:
    import numpy.typing as npt

LIST_RECIPES = Rpc(
    "EmbeddingService/ListRecipes",
    embeddings_pb2.ListRecipesRequest,
    embeddings_pb2.ListRecipesResponse,
    idempotent=True,
)
STATS = Rpc(
    "EmbeddingService/GetEmbeddingStats",
    embeddings_pb2.GetEmbeddingStatsRequest,
    embeddings_pb2.GetEmbeddingStatsResponse,
    idempotent=True,
)
READ = Rpc(
    "EmbeddingService/ReadEmbeddings",
    embeddings_pb2.ReadEmbeddingsRequest,
    embeddings_pb2.ReadEmbeddingsResponse,
    idempotent=True,
    decode=VectorPiece.decoded,
)
WRITE = Rpc(
    "EmbeddingService/WriteEmbeddings", embeddings_pb2.WriteEmbeddingsRequest, embeddings_pb2.WriteEmbeddingsResponse
)
NEIGHBOURS = Rpc(
    "EmbeddingService/FindNeighbours",
    embeddings_pb2.FindNeighboursRequest,
    embeddings_pb2.FindNeighboursResponse,
    idempotent=True,
)
PIN = Rpc("EmbeddingService/PinEmbeddings", embeddings_pb2.PinEmbeddingsRequest, embeddings_pb2.PinEmbeddingsResponse)

_KEPT_BLOCK_BYTES = 8 * 1024 * 1024  # above any message
_DATA_TYPES = {
    "float32": embeddings_pb2.DATA_TYPE_FLOAT32,
    "float16": embeddings_pb2.DATA_TYPE_FLOAT16,
}


@dataclass(frozen=True)
class Neighbour:
    """A near item."""

    item_id: str
    similarity: float  # cosine, -1 to 1


class AsyncCatalogEmbeddings:
    """The vectors of one catalog, for coroutines. See :class:`CatalogEmbeddings` for what each call does."""

    def __init__(self, transport: Transport, catalog: str) -> None:
        self._transport = transport
        self._catalog = catalog

    async def read(
        self,
        *,
        recipe: str = "default",
        model: str | None = None,
        sources: Iterable[str] | None = None,
        item_ids: Iterable[str] | None = None,
        dtype: Literal["float32", "float16"] = "float32",
        version: int | None = None,
    ) -> Embeddings:
        """Reads vectors in bulk."""
        if dtype not in _DATA_TYPES:
            raise InvalidInput(f"dtype is {dtype!r}; expected 'float32' or 'float16'")
        names = () if sources is None else id_list(sources, name="sources", when_empty="pass None for all sources")
        pieces: list[list[str]] = [[]]  # on the wire, no ids means every item
        collector = VectorCollector()
        if item_ids is not None:
            ids = id_list(item_ids, name="item_ids", when_empty="pass None for all items")
            collector.expect(len(ids))
            limits = await self._transport.limits()
            max_bytes = await self._transport.message_bytes()
            pieces = list(cut(ids, bytes_of=utf8_bytes, max_count=limits.max_ids_per_call, max_bytes=max_bytes))
        request = embeddings_pb2.ReadEmbeddingsRequest(
            catalog=self._catalog, sources=names, data_type=_DATA_TYPES[dtype], version=version or 0
        )
        if model is None:
            request.recipe = recipe
        else:
            request.model = model
        first = embeddings_pb2.ReadEmbeddingsResponse()
        for piece in pieces:
            del request.item_ids[:]
            request.item_ids.extend(piece)
            first = await self._read_into(collector, request)
            request.version = first.version  # the pieces are of one version
            if model is not None:
                request.model = first.model or model  # and of one model, should its alias move
        assert collector.found_N is not None
        return Embeddings(
            ids=collector.ids,
            found=collector.found_N,
            recipe_id=first.recipe_id,
            model=first.model or None,
            version=first.version,
            _vectors=collector.vectors,
            _present=collector.present,
        )

    async def _read_into(
        self, collector: VectorCollector, request: embeddings_pb2.ReadEmbeddingsRequest
    ) -> embeddings_pb2.ReadEmbeddingsResponse:
        """Makes one call, from its start again when the server goes away; returns its first message without data."""
        before = len(collector.ids)
        # glibc gives large blocks back to the system when they are freed. For messages of a megabyte that costs several
        # times as much as the copying. Once a block of this size was freed, it keeps blocks up to it for the next one.
        bytes(_KEPT_BLOCK_BYTES)

        async def attempt(_: float | None) -> embeddings_pb2.ReadEmbeddingsResponse:
            collector.rewind(before)
            first: embeddings_pb2.ReadEmbeddingsResponse | None = None
            async with aclosing(self._transport.stream(READ, request)) as answers:
                async for answer in answers:
                    if first is None:
                        first = embeddings_pb2.ReadEmbeddingsResponse(
                            recipe_id=answer.recipe_id, model=answer.model, version=answer.version, rows=answer.rows
                        )
                        if not request.item_ids:
                            collector.expect(answer.rows)
                    collector.feed(answer.data)
            expected = before + (len(request.item_ids) or (first.rows if first is not None else 0))
            if first is None or len(collector.ids) != expected or collector.found_N is None:
                raise MalformedArrow(
                    f"the server sent {len(collector.ids) - before} of {expected - before} rows; read again"
                )
            return first

        return await self._transport.retrying(attempt, seconds=None, idempotent=True)

    async def write(
        self,
        *,
        source: str,
        item_ids: Sequence[str],
        vectors: npt.ArrayLike,
        recipe: str = "default",
        create_recipe: bool = False,
    ) -> UpsertSummary:
        """Writes vectors of the caller's own as a source of a recipe."""
        return await self.write_batches(
            [(item_ids, vectors)], source=source, recipe=recipe, create_recipe=create_recipe
        )

    async def write_batches(
        self,
        batches: Iterable[tuple[Sequence[str], npt.ArrayLike]] | AsyncIterable[tuple[Sequence[str], npt.ArrayLike]],
        *,
        source: str,
        recipe: str = "default",
        create_recipe: bool = False,
    ) -> UpsertSummary:
        """Writes vectors batch by batch."""
        one_id(source, name="source")
        counter = RowCounter()
        messages = self._write_messages(batches, source=source, recipe=recipe, create_recipe=create_recipe)
        async with aclosing(self._transport.exchange(WRITE, messages)) as answers:
            async for _, answer in answers:
                counter.count(answer.results)
        return counter.summary()

    async def _write_messages(
        self,
        batches: Iterable[tuple[Sequence[str], npt.ArrayLike]] | AsyncIterable[tuple[Sequence[str], npt.ArrayLike]],
        *,
        source: str,
        recipe: str,
        create_recipe: bool,
    ) -> AsyncGenerator[tuple[embeddings_pb2.WriteEmbeddingsRequest, Literal[True] | None], None]:
        max_rows = (await self._transport.limits()).max_ids_per_call
        max_bytes = await self._transport.chunk_bytes()
        width: int | None = None
        async with aclosing(in_chunks(batches, 1)) as chunks:
            async for [(item_ids, vectors)] in chunks:
                ids, matrix = checked(item_ids, vectors, source=source, width=width)
                width = matrix.shape[1]
                for data in messages_of(ids, matrix, max_rows=max_rows, max_bytes=max_bytes):
                    yield (
                        embeddings_pb2.WriteEmbeddingsRequest(
                            catalog=self._catalog,
                            recipe=recipe,
                            source=source,
                            data=data,
                            create_recipe=create_recipe,
                        ),
                        True,
                    )

    async def neighbours(
        self,
        *,
        item_id: str | None = None,
        vector: npt.ArrayLike | None = None,
        recipe: str = "default",
        model: str | None = None,
        source: str | None = None,
        k: int = 10,
    ) -> list[Neighbour]:
        """Finds the items nearest to an item or to a vector."""
        request = embeddings_pb2.FindNeighboursRequest(
            catalog=self._catalog, source=source or "", k=positive(k, name="k")
        )
        if model is None:
            request.recipe = recipe
        else:
            request.model = model
        if item_id is not None and vector is None:
            request.item_id = one_id(item_id, name="item_id")
        elif vector is not None and item_id is None:
            request.vector = query_vector(vector)
        else:
            raise InvalidInput("give either item_id or vector: what the items are to be near to")
        answer = await self._transport.unary(NEIGHBOURS, request)
        return [Neighbour(one.item_id, one.similarity) for one in answer.neighbours]

    async def stats(self, recipe: str = "default") -> EmbeddingStats:
        """Tells what a recipe holds."""
        answer = await self._transport.unary(
            STATS, embeddings_pb2.GetEmbeddingStatsRequest(catalog=self._catalog, recipe=recipe)
        )
        return EmbeddingStats(
            recipe=recipe_from_wire(answer.recipe),
            items=answer.items,
            rows=answer.rows,
            version=answer.version,
            sources=tuple(
                SourceStats(source_from_wire(one.source), one.coverage, one.mean_norm, one.mean_pair_cosine)
                for one in answer.sources
            ),
        )

    async def recipes(self) -> list[Recipe]:
        """Lists the catalog's recipes, newest first."""
        answer = await self._transport.unary(LIST_RECIPES, embeddings_pb2.ListRecipesRequest(catalog=self._catalog))
        return [recipe_from_wire(one) for one in answer.recipes]

    async def pin(self, recipe: str = "default", *, ttl_seconds: int = 3_600, holder: str = "") -> AsyncPin:
        """Keeps the newest version of a recipe's vectors readable for a time."""
        answer = await self._transport.unary(
            PIN,
            embeddings_pb2.PinEmbeddingsRequest(
                catalog=self._catalog,
                recipe=recipe,
                ttl_seconds=positive(ttl_seconds, name="ttl_seconds"),
                holder=holder,
            ),
        )
        return AsyncPin(
            pin_id=answer.pin_id,
            recipe_id=answer.recipe_id,
            version=answer.version,
            digest=answer.digest,
            expire_time=to_time(answer.expire_time),
            _transport=self._transport,
        )


class CatalogEmbeddings:
    """The vectors of one catalog."""

    def __init__(self, core: AsyncCatalogEmbeddings, loop: EventLoopThread) -> None:
        self._core = core
        self._loop = loop

    def read(
        self,
        *,
        recipe: str = "default",
        model: str | None = None,
        sources: Iterable[str] | None = None,
        item_ids: Iterable[str] | None = None,
        dtype: Literal["float32", "float16"] = "float32",
        version: int | None = None,
    ) -> Embeddings:
        """Reads vectors in bulk.

        Args:
            recipe: The recipe's name or id: raw vectors.
            model: A model's alias, name or "name:version": its adapted vectors instead, as the one source "vector".
            sources: Only these; all when None.
            item_ids: These items in this order, however many; every item, ordered by id, when None.
            dtype: "float16" halves the traffic and the memory.
            version: The table version to read, of a pin; the newest when None.

        Raises:
            RecipeNotFound: No such recipe.
            SourceNotFound: The recipe has no such source.
            ModelNotFound: No such model.
            VersionNotFound: That version no longer exists.
        """
        return self._loop.run(
            self._core.read(
                recipe=recipe, model=model, sources=sources, item_ids=item_ids, dtype=dtype, version=version
            )
        )

    def write(
        self,
        *,
        source: str,
        item_ids: Sequence[str],
        vectors: npt.ArrayLike,
        recipe: str = "default",
        create_recipe: bool = False,
    ) -> UpsertSummary:
        """Writes vectors of the caller's own as a source of a recipe.

        Args:
            source: The source's name. It is declared with its width at its first write.
            item_ids: N items of the catalog.
            vectors: [N, D], float32 or float16. A row with NaN or infinity is rejected by itself.
            recipe: The recipe's name or id.
            create_recipe: Make the recipe, without descriptions, when no recipe has that name.

        Raises:
            InvalidInput: The shape, number format or length is wrong.
            DimensionMismatch: The source is declared with another width.
            SourceReadOnly: The source is made by enrichment.
        """
        return self._loop.run(
            self._core.write(
                source=source, item_ids=item_ids, vectors=vectors, recipe=recipe, create_recipe=create_recipe
            )
        )

    def write_batches(
        self,
        batches: Iterable[tuple[Sequence[str], npt.ArrayLike]],
        *,
        source: str,
        recipe: str = "default",
        create_recipe: bool = False,
    ) -> UpsertSummary:
        """Writes vectors batch by batch, at constant memory; otherwise as :meth:`write`.

        Args:
            batches: Pairs of ids and vectors [N, D]. The iterable runs in the calling thread. Batches before one
                that raises are stored.
            source: The source's name.
            recipe: The recipe's name or id.
            create_recipe: Make the recipe when no recipe has that name.
        """
        return self._loop.run(
            self._core.write_batches(batches, source=source, recipe=recipe, create_recipe=create_recipe)
        )

    def neighbours(
        self,
        *,
        item_id: str | None = None,
        vector: npt.ArrayLike | None = None,
        recipe: str = "default",
        model: str | None = None,
        source: str | None = None,
        k: int = 10,
    ) -> list[Neighbour]:
        """Finds the items nearest by cosine, nearest first.

        Args:
            item_id: Near to this item, which is left out; or
            vector: near to this vector [D].
            recipe: Where to search: the recipe's name or id.
            model: A model's adapted vectors instead.
            source: "text" when None and a recipe is searched.
            k: How many.

        Raises:
            ItemNotFound: No such item.
            VectorMissing: The item has no vector for that source.
            DimensionMismatch: The vector has another width than the source.
        """
        return self._loop.run(
            self._core.neighbours(item_id=item_id, vector=vector, recipe=recipe, model=model, source=source, k=k)
        )

    def stats(self, recipe: str = "default") -> EmbeddingStats:
        """Tells coverage, widths and norms by source.

        Raises:
            RecipeNotFound: No such recipe.
        """
        return self._loop.run(self._core.stats(recipe))

    def recipes(self) -> list[Recipe]:
        """Lists the catalog's recipes, newest first."""
        return self._loop.run(self._core.recipes())

    def pin(self, recipe: str = "default", *, ttl_seconds: int = 3_600, holder: str = "") -> Pin:
        """Keeps the newest version of a recipe's vectors readable for a time.

        Args:
            recipe: The recipe's name or id.
            ttl_seconds: How long; the server allows 7 days at most.
            holder: Who pins, for people who look at the list.

        Returns:
            The pin; used in `with`, it is given back at the end.
        """
        return Pin.of(self._loop.run(self._core.pin(recipe, ttl_seconds=ttl_seconds, holder=holder)), self._loop)
