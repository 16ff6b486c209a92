"""RecommendationService: what to show next to a user with this history."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from dmesr.v1 import recommendations_pb2 as pb
from dmesr.v1 import recommendations_pb2_grpc
from grpc.aio import ServicerContext

from dmesr_server.api import translation, validation
from dmesr_server.api.parts import Parts
from dmesr_server.serving.recommender import Settings, recommend

_Context = ServicerContext[Any, Any]


class RecommendationServicer(recommendations_pb2_grpc.RecommendationServiceServicer):
    """Recommends items."""

    def __init__(self, parts: Parts):
        self._parts = parts
        self._limits = parts.config.limits

    async def Recommend(self, request: pb.RecommendRequest, context: _Context) -> pb.RecommendResponse:
        """Recommends for one history."""
        return await asyncio.to_thread(self._one, request)

    async def BatchRecommend(self, request: pb.BatchRecommendRequest, context: _Context) -> pb.BatchRecommendResponse:
        """Recommends for many histories."""
        return await asyncio.to_thread(self._many, request)

    def _one(self, request: pb.RecommendRequest) -> pb.RecommendResponse:
        lists, model = self._lists(request, [request.history])
        return pb.RecommendResponse(list=lists[0], model=model)

    def _many(self, request: pb.BatchRecommendRequest) -> pb.BatchRecommendResponse:
        validation.at_most(
            "histories", len(request.histories), self._limits.max_histories_per_call, "max_histories_per_call"
        )
        lists, model = self._lists(request, request.histories)
        return pb.BatchRecommendResponse(lists=lists, model=model)

    def _lists(
        self, request: pb.RecommendRequest | pb.BatchRecommendRequest, histories: Sequence[pb.History]
    ) -> tuple[list[pb.RecommendationList], str]:
        wanted = request.settings
        for field, ids in (
            ("settings.allow_item_ids", wanted.allow_item_ids),
            ("settings.deny_item_ids", wanted.deny_item_ids),
        ):
            validation.at_most(field, len(ids), self._limits.max_ids_per_call, "max_ids_per_call")
        settings = Settings(
            k=validation.k(wanted.k, self._limits),
            exclude_seen=not wanted.include_seen,
            allow=list(wanted.allow_item_ids),
            deny=list(wanted.deny_item_ids),
        )
        catalog = validation.catalog_name(request.catalog)
        # One object from start to end: whatever is promoted or adapted meanwhile, one version answers.
        model = self._parts.live.get(catalog=catalog, ref=request.model or validation.DEFAULT_ALIAS)
        ranked = recommend(model, [history.item_ids for history in histories], settings)
        stored = {}
        if wanted.attributes:
            shown = validation.distinct(scored.item_id for answer in ranked for scored in answer.items)
            stored = self._parts.store.catalog(catalog).items.get(shown)
        lists = [translation.recommendation_list(answer, stored, wanted.attributes) for answer in ranked]
        return lists, model.ref
