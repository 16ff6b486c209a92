"""RecommendationService: what to show next to a user with this history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmesr.v1 import recommendations_pb2 as pb
from dmesr.v1 import recommendations_pb2_grpc
from grpc.aio import ServicerContext

from dmesr_server import filters
from dmesr_server.api import translation, validation
from dmesr_server.api.parts import Parts
from dmesr_server.api.working import in_thread
from dmesr_server.serving.batching import MicroBatcher, told
from dmesr_server.serving.candidates import Candidates
from dmesr_server.serving.recommender import Question, RankedList, ServedModel, Settings, recommend
from dmesr_server.store import StoredItem
from dmesr_server.telemetry import metrics, traces

_Context = ServicerContext[Any, Any]
_MAX_QUESTIONS = 256  # answered by one run


class RecommendationServicer(recommendations_pb2_grpc.RecommendationServiceServicer):
    """Recommends items."""

    def __init__(self, parts: Parts):
        self._parts = parts
        self._limits = parts.config.limits
        self._batcher = MicroBatcher(max_questions=_MAX_QUESTIONS)

    async def Recommend(self, request: pb.RecommendRequest, context: _Context) -> pb.RecommendResponse:
        """Recommends for one history, together with whatever other calls wait at the same moment."""
        self._check(request.settings)
        catalog, asked = validation.catalog_name(request.catalog), validation.alias_name(request.model)
        live = self._parts.live
        # One object from start to end: whatever is promoted or adapted meanwhile, one version answers.
        routed = live.held(catalog=catalog, ref=asked, unit_id=request.unit_id)
        if routed is None:
            routed = await in_thread(live.get, catalog=catalog, ref=asked, unit_id=request.unit_id)
        candidates = None
        if request.settings.filter:
            candidates = await in_thread(self._candidates, routed.model, request.settings.filter)
        question = Question(tuple(request.history.item_ids), self._settings(request.settings, candidates))
        ranked = await self._batcher.ask(routed.model, question)
        _count(routed.model, [ranked])
        stored: Mapping[str, StoredItem] = {}
        if request.settings.attributes:
            stored = await in_thread(self._stored, catalog, [ranked])
        return pb.RecommendResponse(
            list=translation.recommendation_list(ranked, stored, request.settings.attributes),
            model=routed.model.ref,
            alias=routed.alias,
        )

    async def BatchRecommend(self, request: pb.BatchRecommendRequest, context: _Context) -> pb.BatchRecommendResponse:
        """Recommends for many histories."""
        return await in_thread(self._many, request)

    def _many(self, request: pb.BatchRecommendRequest) -> pb.BatchRecommendResponse:
        validation.at_most(
            "histories", len(request.histories), self._limits.max_histories_per_call, "max_histories_per_call"
        )
        self._check(request.settings)
        catalog = validation.catalog_name(request.catalog)
        routed = self._parts.live.get(
            catalog=catalog, ref=validation.alias_name(request.model), unit_id=request.unit_id
        )
        candidates = self._candidates(routed.model, request.settings.filter) if request.settings.filter else None
        settings = self._settings(request.settings, candidates)
        with traces.step("top-k", told(routed.model, len(request.histories))):
            ranked = recommend(routed.model, [history.item_ids for history in request.histories], settings)
        _count(routed.model, ranked)
        stored = self._stored(catalog, ranked) if request.settings.attributes else {}
        lists = [translation.recommendation_list(answer, stored, request.settings.attributes) for answer in ranked]
        return pb.BatchRecommendResponse(lists=lists, model=routed.model.ref, alias=routed.alias)

    def _check(self, wanted: pb.RecommendSettings) -> None:
        for field, ids in (
            ("settings.allow_item_ids", wanted.allow_item_ids),
            ("settings.deny_item_ids", wanted.deny_item_ids),
        ):
            validation.at_most(field, len(ids), self._limits.max_ids_per_call, "max_ids_per_call")
        validation.k(wanted.k, self._limits)

    def _settings(self, wanted: pb.RecommendSettings, candidates: Candidates | None) -> Settings:
        return Settings(
            k=validation.k(wanted.k, self._limits),
            exclude_seen=not wanted.include_seen,
            allow=wanted.allow_item_ids,
            deny=wanted.deny_item_ids,
            candidates=candidates,
            fallback_item_id=wanted.fallback_item_id,
        )

    def _candidates(self, model: ServedModel, text: str) -> Candidates:
        return self._parts.live.masks.get(catalog=model.catalog, index=model.index, filter_=filters.parse(text))

    def _stored(self, catalog: str, ranked: Sequence[RankedList]) -> Mapping[str, StoredItem]:
        shown = validation.distinct(scored.item_id for answer in ranked for scored in answer.items)
        return self._parts.store.catalog(catalog).items.get(shown)


def _count(model: ServedModel, ranked: Sequence[RankedList]) -> None:
    recipe = model.artefact.manifest.recipe_id
    traces.note({"dmesr.model": model.ref, "dmesr.recipe": recipe})
    if metrics.get() is None:
        return
    for answer in ranked:
        metrics.recommended(catalog=model.catalog, model=model.ref, recipe=recipe, strategy=answer.strategy.value)
