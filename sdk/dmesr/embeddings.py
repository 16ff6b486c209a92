"""Embeddings: the vectors of items, raw by source or adapted by a model."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dmesr import neighbours, reads, writes
from dmesr.arguments import positive
from dmesr.bridge import EventLoopThread
from dmesr.neighbours import Neighbours
from dmesr.pins import AsyncPin, Pin
from dmesr.reads import DataType, Wanted
from dmesr.recipes import EmbeddingStats, Recipe, recipe_from_wire, source_stats_from_wire
from dmesr.rows import UpsertSummary, to_time
from dmesr.transport import Rpc, Transport
from dmesr.v1 import embeddings_pb2
from dmesr.vector_batches import AsyncVectorBatches, VectorBatches
from dmesr.vector_cache import VectorCache
from dmesr.vectors import Embeddings

if TYPE_CHECKING:
    import numpy.typing as npt

    from dmesr.writes import Vectors

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
PIN = Rpc("EmbeddingService/PinEmbeddings", embeddings_pb2.PinEmbeddingsRequest, embeddings_pb2.PinEmbeddingsResponse)


class AsyncCatalogEmbeddings:
    """The vectors of one catalog, for coroutines. See :class:`CatalogEmbeddings` for what each call does."""

    def __init__(self, transport: Transport, catalog: str, *, cache: VectorCache | None = None) -> None:
        self._transport = transport
        self._catalog = catalog
        self._cache = cache

    async def read(
        self,
        *,
        recipe: str = "default",
        model: str | None = None,
        sources: Iterable[str] | None = None,
        item_ids: Iterable[str] | None = None,
        dtype: DataType = "float32",
        version: int | None = None,
        cache: VectorCache | Path | str | bool | None = None,
    ) -> Embeddings:
        """Reads vectors in bulk."""
        wanted = Wanted(recipe=recipe, model=model, sources=sources, dtype=dtype, version=version)
        return await reads.read(self._transport, self._catalog, wanted, item_ids=item_ids, cache=self._chosen(cache))

    def batches(
        self,
        *,
        recipe: str = "default",
        model: str | None = None,
        sources: Iterable[str] | None = None,
        dtype: DataType = "float32",
        version: int | None = None,
        rows: int = 4_096,
        cache: VectorCache | Path | str | bool | None = None,
    ) -> AsyncVectorBatches:
        """Reads vectors batch by batch."""
        names = None if sources is None else list(sources)
        wanted = Wanted(recipe=recipe, model=model, sources=names, dtype=dtype, version=version)
        chosen = self._chosen(cache)
        return AsyncVectorBatches(
            lambda: reads.batches(self._transport, self._catalog, wanted, rows=rows, cache=chosen)
        )

    def _chosen(self, cache: VectorCache | Path | str | bool | None) -> VectorCache | None:
        return self._cache if cache is None else VectorCache.of(cache)

    async def write(
        self,
        *,
        item_ids: Sequence[str],
        vectors: Vectors,
        source: str | None = None,
        recipe: str = "default",
        create_recipe: bool = False,
    ) -> UpsertSummary:
        """Writes vectors of the caller's own as a source of a recipe."""
        return await self.write_batches(
            [(item_ids, vectors)], source=source, recipe=recipe, create_recipe=create_recipe
        )

    async def write_batches(
        self,
        batches: Iterable[tuple[Sequence[str], Vectors]] | AsyncIterable[tuple[Sequence[str], Vectors]],
        *,
        source: str | None = None,
        recipe: str = "default",
        create_recipe: bool = False,
    ) -> UpsertSummary:
        """Writes vectors batch by batch."""
        return await writes.write_batches(
            self._transport, self._catalog, batches, source=source, recipe=recipe, create_recipe=create_recipe
        )

    async def neighbours(
        self,
        *,
        item_id: str | None = None,
        vector: npt.ArrayLike | None = None,
        text: str | None = None,
        recipe: str = "default",
        model: str | None = None,
        source: str | None = None,
        k: int = 10,
        filter: str | None = None,
        exact: bool = False,
    ) -> Neighbours:
        """Finds the items nearest to an item, a vector or a text."""
        request = neighbours.asked(
            catalog=self._catalog,
            item_id=item_id,
            vector=vector,
            text=text,
            recipe=recipe,
            model=model,
            source=source,
            k=k,
            filter=filter,
            exact=exact,
        )
        return neighbours.found(await self._transport.unary(neighbours.NEIGHBOURS, request))

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
            sources=tuple(source_stats_from_wire(one) for one in answer.sources),
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
        dtype: DataType = "float32",
        version: int | None = None,
        cache: VectorCache | Path | str | bool | None = None,
    ) -> Embeddings:
        """Reads vectors in bulk.

        Args:
            recipe: The recipe's name or id: raw vectors.
            model: A model's alias, name or "name:version": its adapted vectors instead, as the one source "vector".
            sources: Only these; all when None.
            item_ids: These items in this order, however many; every item, ordered by id, when None.
            dtype: "float16" halves the traffic and the memory.
            version: The table version to read, of a pin; the newest when None.
            cache: Keep what is read on this machine, and read from there what has not changed: a folder, True for the
                user's own, False for none; what the client was connected with when None. What is read by `item_ids` is
                not kept, but found in what was.

        Raises:
            RecipeNotFound: No such recipe.
            SourceNotFound: The recipe has no such source.
            ModelNotFound: No such model.
            VersionNotFound: That version no longer exists.
        """
        return self._loop.run(
            self._core.read(
                recipe=recipe,
                model=model,
                sources=sources,
                item_ids=item_ids,
                dtype=dtype,
                version=version,
                cache=cache,
            )
        )

    def batches(
        self,
        *,
        recipe: str = "default",
        model: str | None = None,
        sources: Iterable[str] | None = None,
        dtype: DataType = "float32",
        version: int | None = None,
        rows: int = 4_096,
        cache: VectorCache | Path | str | bool | None = None,
    ) -> VectorBatches:
        """Reads all items' vectors batch by batch, ordered by id, at constant memory.

            for ids, matrices, present in client.embeddings.batches(sources=["text"]): ...
            loader = torch.utils.data.DataLoader(client.embeddings.batches().to_torch(), batch_size=None)

        Args:
            recipe: As for :meth:`read`.
            model: As for :meth:`read`.
            sources: As for :meth:`read`.
            dtype: As for :meth:`read`.
            version: As for :meth:`read`. A pin's, where every pass must give the same.
            rows: Of a batch.
            cache: As for :meth:`read`. The first pass then reads all into memory and keeps it.

        Returns:
            The batches; each pass over them reads anew. What :meth:`read` raises, the pass raises.
        """
        core = self._core.batches(
            recipe=recipe, model=model, sources=sources, dtype=dtype, version=version, rows=rows, cache=cache
        )
        return VectorBatches(core, self._loop)

    def write(
        self,
        *,
        item_ids: Sequence[str],
        vectors: Vectors,
        source: str | None = None,
        recipe: str = "default",
        create_recipe: bool = False,
    ) -> UpsertSummary:
        """Writes vectors of the caller's own as a source of a recipe, or as several.

        Several sources of the same items are best written at once: each item's row is then written once.

        Args:
            item_ids: N items of the catalog.
            vectors: [N, D], float32 or float16, or a mapping of sources to such. A row with NaN or infinity is
                rejected by itself, with all its sources.
            source: The source's name, unless vectors is a mapping. A source is declared with its width at its first
                write.
            recipe: The recipe's name or id.
            create_recipe: Make the recipe, without descriptions, when no recipe has that name.

        Raises:
            InvalidInput: The shape, number format or length is wrong, or there is no source.
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
        batches: Iterable[tuple[Sequence[str], Vectors]],
        *,
        source: str | None = None,
        recipe: str = "default",
        create_recipe: bool = False,
    ) -> UpsertSummary:
        """Writes vectors batch by batch, at constant memory; otherwise as :meth:`write`.

        Args:
            batches: Pairs of ids and vectors. The iterable runs in the calling thread. Batches before one that raises
                are stored.
            source: The source's name, unless the vectors are mappings.
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
        text: str | None = None,
        recipe: str = "default",
        model: str | None = None,
        source: str | None = None,
        k: int = 10,
        filter: str | None = None,
        exact: bool = False,
    ) -> Neighbours:
        """Finds the items nearest by cosine, nearest first.

        Args:
            item_id: Near to this item, which is left out; or
            vector: near to this vector [D]; or
            text: near to this text, which an enricher of the server encodes as the recipe's texts were.
            recipe: Where to search: the recipe's name or id.
            model: A model's adapted vectors instead; not with `text`.
            source: "text" when None and a recipe is searched.
            k: How many.
            filter: Only items whose attributes meet it, for instance 'genre has "Drama" and year >= 1990'. They are
                told apart before the nearest are taken.
            exact: Compare with every vector also where the server has an index; the answer says which it was.

        Raises:
            ItemNotFound: No such item.
            VectorMissing: The item has no vector for that source.
            DimensionMismatch: The vector has another width than the source.
            InvalidFilter: The filter cannot be read.
            NoEnricher: A text is to be encoded, and no enricher answers.
            EncoderUnavailable: The recipe's encoder is not to be had there.
        """
        return self._loop.run(
            self._core.neighbours(
                item_id=item_id,
                vector=vector,
                text=text,
                recipe=recipe,
                model=model,
                source=source,
                k=k,
                filter=filter,
                exact=exact,
            )
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
