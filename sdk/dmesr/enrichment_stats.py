"""Figures of enrichment: what the descriptions of a recipe are like and what they took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dmesr.rows import reason_name
from dmesr.transport import Rpc, Transport
from dmesr.v1 import enrichment_pb2

STATS = Rpc(
    "EnrichmentService/GetEnrichmentStats",
    enrichment_pb2.GetEnrichmentStatsRequest,
    enrichment_pb2.GetEnrichmentStatsResponse,
    idempotent=True,
)


@dataclass(frozen=True)
class RefinementStats:
    """What refinement did to the descriptions of one route."""

    refined: int  # descriptions
    mean_rounds: float  # of review
    gain: float  # new content words of all revisions, as a share of the drafts'
    new_words_by_round: tuple[float, ...]  # mean new content words of the first revision, the second, …


@dataclass(frozen=True)
class RouteStats:
    """The descriptions of one route by one recipe."""

    route: str
    description_recipe_id: str
    applicable: int  # items for which the route applies, or that have a text nonetheless
    described: int  # those that have a text, stale ones and corrections included
    stale: int  # of `described`: the item has changed since
    corrected: int  # of `described`: by a person
    failures: Mapping[str, int]  # by reason, the most frequent first
    mean_words: float
    tokens_in: int
    tokens_out: int
    tokens_cached: int  # of `tokens_in`: saved by the prefix cache
    milliseconds: float  # each description by its own clock
    tokens_per_second: float | None  # written, calls side by side together; None where no tokens were counted
    stop_reasons: Mapping[str, int]  # why generation ended
    refinement: RefinementStats | None  # None where nothing was refined

    @property
    def coverage(self) -> float:
        """Share of the applicable items that have a text."""
        return self.described / self.applicable if self.applicable else 0.0

    @property
    def failed(self) -> int:
        """Descriptions that failed."""
        return sum(self.failures.values())

    @property
    def cache_hit_share(self) -> float | None:
        """Share of the tokens read that the prefix cache saved; None where none were counted."""
        return self.tokens_cached / self.tokens_in if self.tokens_in else None


@dataclass(frozen=True)
class EnrichmentStats:
    """The figures of a recipe."""

    recipe_id: str
    items: int  # of the catalog
    routes: tuple[RouteStats, ...]


async def read_enrichment_stats(transport: Transport, catalog: str, *, recipe: str) -> EnrichmentStats:
    """Reads the figures of a recipe. The server reads every description: a large catalog takes its time."""
    answer = await transport.unary(
        STATS,
        enrichment_pb2.GetEnrichmentStatsRequest(catalog=catalog, recipe=recipe),
        seconds=transport.timeout.stream_seconds,
    )
    return EnrichmentStats(answer.recipe_id, answer.items, tuple(_route(one) for one in answer.routes))


def _route(one: enrichment_pb2.RouteStats) -> RouteStats:
    refined = one.refinement
    return RouteStats(
        route=one.route,
        description_recipe_id=one.description_recipe_id,
        applicable=one.applicable,
        described=one.described,
        stale=one.stale,
        corrected=one.corrected,
        failures={reason_name(failure.reason): failure.count for failure in one.failures},
        mean_words=one.mean_words,
        tokens_in=one.tokens_in,
        tokens_out=one.tokens_out,
        tokens_cached=one.tokens_cached,
        milliseconds=one.milliseconds,
        tokens_per_second=one.tokens_per_second if one.HasField("tokens_per_second") else None,
        stop_reasons=dict(one.stop_reasons),
        refinement=RefinementStats(
            refined.refined, refined.mean_rounds, refined.gain, tuple(refined.new_words_by_round)
        )
        if one.HasField("refinement")
        else None,
    )
