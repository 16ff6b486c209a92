"""Bulk writes of a team's own vectors."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal

from dmesr.arguments import one_id
from dmesr.arrow import varint
from dmesr.bridge import in_chunks
from dmesr.errors import InvalidInput
from dmesr.rows import RowCounter, UpsertSummary
from dmesr.transport import Rpc, Transport
from dmesr.v1 import embeddings_pb2
from dmesr.vectors import checked, streams_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from dmesr.arrow import Matrix

    Vectors = npt.ArrayLike | Mapping[str, npt.ArrayLike]
    Batch = tuple[Sequence[str], Vectors]

# Messages come as bytes that are made already: protobuf would copy the vectors twice more.
WRITE: Rpc[Any, embeddings_pb2.WriteEmbeddingsResponse] = Rpc(
    "EmbeddingService/WriteEmbeddings",
    embeddings_pb2.WriteEmbeddingsRequest,
    embeddings_pb2.WriteEmbeddingsResponse,
    encode=bytes,
)

# Messages of about 3 MiB that may be unanswered: the server commits what has come in together.
_WINDOW = 24
_DATA_TAG = bytes([embeddings_pb2.WriteEmbeddingsRequest.DESCRIPTOR.fields_by_name["data"].number << 3 | 2])


async def write_batches(
    transport: Transport,
    catalog: str,
    batches: Iterable[Batch] | AsyncIterable[Batch],
    *,
    source: str | None,
    recipe: str,
    create_recipe: bool,
) -> UpsertSummary:
    """Writes vectors batch by batch; a batch counts once the server has answered that it is durable."""
    if source is not None:
        one_id(source, name="source")
    counter = RowCounter()
    like = embeddings_pb2.WriteEmbeddingsRequest(
        catalog=catalog, recipe=recipe, source=source or "", create_recipe=create_recipe
    )
    async with aclosing(transport.exchange(WRITE, _messages(transport, batches, like), window=_WINDOW)) as answers:
        async for _, answer in answers:
            counter.count(answer.results)
    return counter.summary()


async def _messages(
    transport: Transport,
    batches: Iterable[Batch] | AsyncIterable[Batch],
    like: embeddings_pb2.WriteEmbeddingsRequest,
) -> AsyncGenerator[tuple[bytes, Literal[True] | None], None]:
    max_rows = (await transport.limits()).max_ids_per_call
    max_bytes = await transport.message_bytes()
    head = like.SerializeToString()
    widths: dict[str, int] = {}
    async with aclosing(in_chunks(batches, 1)) as chunks:
        async for [(item_ids, vectors)] in chunks:
            ids = list(item_ids) if not isinstance(item_ids, str) else item_ids  # `checked` refuses a string
            columns: dict[str, Matrix] = {}
            for name, source, given in _columns(vectors, like.source):
                ids, columns[name] = checked(ids, given, source=source, width=widths.get(source))
                widths[source] = columns[name].shape[1]
            for stream in streams_of(ids, columns, max_rows=max_rows, max_bytes=max_bytes):
                yield b"".join((head, _DATA_TAG, varint(sum(map(len, stream))), *stream)), True


def _columns(vectors: Vectors, source: str) -> list[tuple[str, str, npt.ArrayLike]]:
    """The matrices of a batch: the column's name on the wire, the source's, and the numbers."""
    if not isinstance(vectors, Mapping):
        if not source:
            raise InvalidInput("source is missing: name it, or give a mapping of sources to vectors")
        return [("vector", source, vectors)]
    if source:
        raise InvalidInput(f"source is {source!r}, and vectors is a mapping of sources; give one of the two")
    if not vectors:
        raise InvalidInput("vectors is an empty mapping; expected at least one source")
    return [(one_id(name, name="source"), name, given) for name, given in vectors.items()]
