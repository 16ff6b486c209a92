"""Which calls a read-only replica takes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from dmesr_server.api.layers import OURS, like
from dmesr_server.control import read_only_refusal

if TYPE_CHECKING:
    from dmesr_server.api.layers import Handler

#: The calls that change nothing. Whatever is not named here is refused by a read-only replica.
READING = frozenset(
    {
        "AdminService/ListCatalogs",
        "AdminService/GetServerInfo",
        "AdminService/GetStoreStats",
        "AdminService/CheckStore",
        "AdminService/ListTokens",
        "AdminService/ListAuditEntries",
        "EmbeddingService/ListRecipes",
        "EmbeddingService/GetEmbeddingStats",
        "EmbeddingService/ReadEmbeddings",
        "EmbeddingService/FindNeighbours",
        "EnrichmentService/EstimateJob",
        "EnrichmentService/GetJob",
        "EnrichmentService/ListJobs",
        "EnrichmentService/WatchJob",
        "EnrichmentService/GetDescriptions",
        "EnrichmentService/ListDescriptions",
        "EnrichmentService/PreviewPrompt",
        "EnrichmentService/GetEnrichmentStats",
        "ItemService/GetItems",
        "ItemService/ListItems",
        "ItemService/FindMissingPictures",
        "ItemService/GetPicture",
        "ModelService/GetModel",
        "ModelService/ListModels",
        "ModelService/ListAliases",
        "RecommendationService/Recommend",
        "RecommendationService/BatchRecommend",
    }
)


def only_reading(method: str, handler: Handler) -> Handler:
    """Lets through only calls that change nothing: a layer. The rest raise FAILED_PRECONDITION."""
    if not method.startswith(OURS) or method.removeprefix(OURS) in READING:
        return handler

    async def refuse(_: Any, context: Any) -> None:
        raise read_only_refusal()

    async def refuse_stream(_: Any, context: Any) -> AsyncIterator[Any]:
        raise read_only_refusal()
        yield  # unreachable, but it is what makes this a stream

    return like(handler, refuse_stream if handler.response_streaming else refuse)
