"""Bulk writes of a team's own vectors."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Literal

from dmesr.arguments import one_id
from dmesr.bridge import in_chunks
from dmesr.rows import RowCounter, UpsertSummary
from dmesr.transport import Rpc, Transport
from dmesr.v1 import embeddings_pb2
from dmesr.vectors import checked, messages_of

if TYPE_CHECKING:
    import numpy.typing as npt

    Batch = tuple[Sequence[str], npt.ArrayLike]

WRITE = Rpc(
    "EmbeddingService/WriteEmbeddings", embeddings_pb2.WriteEmbeddingsRequest, embeddings_pb2.WriteEmbeddingsResponse
)

# Messages of about 1 MiB that may be unanswered: the server commits what has come in together.
_WINDOW = 32


async def write_batches(
    transport: Transport,
    catalog: str,
    batches: Iterable[Batch] | AsyncIterable[Batch],
    *,
    source: str,
    recipe: str,
    create_recipe: bool,
) -> UpsertSummary:
    """Writes vectors batch by batch; a batch counts once the server has answered that it is durable."""
    one_id(source, name="source")
    counter = RowCounter()
    like = embeddings_pb2.WriteEmbeddingsRequest(
        catalog=catalog, recipe=recipe, source=source, create_recipe=create_recipe
    )
    async with aclosing(transport.exchange(WRITE, _messages(transport, batches, like), window=_WINDOW)) as answers:
        async for _, answer in answers:
            counter.count(answer.results)
    return counter.summary()


async def _messages(
    transport: Transport,
    batches: Iterable[Batch] | AsyncIterable[Batch],
    like: embeddings_pb2.WriteEmbeddingsRequest,
) -> AsyncGenerator[tuple[embeddings_pb2.WriteEmbeddingsRequest, Literal[True] | None], None]:
    max_rows = (await transport.limits()).max_ids_per_call
    max_bytes = await transport.chunk_bytes()
    width: int | None = None
    async with aclosing(in_chunks(batches, 1)) as chunks:
        async for [(item_ids, vectors)] in chunks:
            ids, matrix = checked(item_ids, vectors, source=like.source, width=width)
            width = matrix.shape[1]
            for data in messages_of(ids, matrix, max_rows=max_rows, max_bytes=max_bytes):
                request = embeddings_pb2.WriteEmbeddingsRequest(data=data)
                request.MergeFrom(like)
                yield request, True
