"""Recommendations: what to show next to a user with this history."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import overload

from dmesr.arguments import cut, id_list, one_id, positive
from dmesr.transport import Rpc, Transport
from dmesr.v1 import recommendations_pb2

RECOMMEND = Rpc(
    "RecommendationService/Recommend",
    recommendations_pb2.RecommendRequest,
    recommendations_pb2.RecommendResponse,
    idempotent=True,
)
BATCH = Rpc(
    "RecommendationService/BatchRecommend",
    recommendations_pb2.BatchRecommendRequest,
    recommendations_pb2.BatchRecommendResponse,
    idempotent=True,
)

# The lists of a call come in one message; each item takes about 100 bytes with its shares, more with attributes.
_ITEMS_PER_ANSWER = 20_000


class Strategy(StrEnum):
    """How a list came to be."""

    UNSPECIFIED = "UNSPECIFIED"  # a strategy that this version does not know
    MODEL = "MODEL"  # the model's own scores
    POPULARITY = "POPULARITY"  # the history was empty or wholly unknown: popular items
    SIMILAR = "SIMILAR"  # the history was empty or wholly unknown: items near to the one that the user looks at


@dataclass(frozen=True)
class Recommendation:
    """A recommended item."""

    item_id: str
    score: float  # comparable only within one list
    shares: dict[str, float]  # what each view contributed to the score, for instance "coarse" and "fine"
    attributes: dict[str, list[str]]  # the asked-for ones that the item has
    is_new: bool  # the item was not in the model's training data


@dataclass(frozen=True)
class Recommendations(Sequence[Recommendation]):
    """The list for one history, best first."""

    recommendations: tuple[Recommendation, ...]
    model: str  # that answered, "name:version"
    alias: str  # that answered: the one asked for, or the other side of a split; "" where the call named a model
    strategy: Strategy
    unknown_item_ids: tuple[str, ...]  # of the history, skipped because the model does not know them

    @overload
    def __getitem__(self, index: int) -> Recommendation: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Recommendation, ...]: ...
    def __getitem__(self, index: int | slice) -> Recommendation | tuple[Recommendation, ...]:
        return self.recommendations[index]

    def __len__(self) -> int:
        return len(self.recommendations)

    def __iter__(self) -> Iterator[Recommendation]:
        return iter(self.recommendations)


def _list(one: recommendations_pb2.RecommendationList, *, model: str, alias: str) -> Recommendations:
    value = recommendations_pb2.Strategy.DESCRIPTOR.values_by_number.get(one.strategy)
    name = value.name.removeprefix("STRATEGY_") if value is not None else ""
    return Recommendations(
        recommendations=tuple(
            Recommendation(
                item_id=found.item_id,
                score=found.score,
                shares=dict(found.shares),
                attributes={attribute.name: list(attribute.values) for attribute in found.attributes},
                is_new=found.is_new,
            )
            for found in one.recommendations
        ),
        model=model,
        alias=alias,
        strategy=Strategy(name) if name in Strategy.__members__ else Strategy.UNSPECIFIED,
        unknown_item_ids=tuple(one.unknown_item_ids),
    )


@dataclass(frozen=True)
class How:
    """How to recommend, as the callers of :class:`~dmesr.Client` say it."""

    k: int
    exclude_seen: bool
    allow: Iterable[str] | None
    deny: Iterable[str] | None
    filter: str | None
    fallback: str | None
    attributes: Iterable[str]

    def settings(self) -> recommendations_pb2.RecommendSettings:
        """As the wire has it.

        Raises:
            InvalidInput: An argument cannot be sent.
        """
        return recommendations_pb2.RecommendSettings(
            k=positive(self.k, name="k"),
            include_seen=not self.exclude_seen,
            allow_item_ids=()
            if self.allow is None
            else id_list(
                self.allow, name="allow", when_empty="nothing could be recommended: pass None to allow every item"
            ),
            deny_item_ids=() if self.deny is None else id_list(self.deny, name="deny"),
            filter=self.filter or "",
            fallback_item_id="" if self.fallback is None else one_id(self.fallback, name="fallback"),
            attributes=id_list(self.attributes, name="attributes"),
        )


async def recommend(
    transport: Transport, catalog: str, *, history: Iterable[str], model: str, unit: str | None, how: How
) -> Recommendations:
    """One history, one call."""
    request = recommendations_pb2.RecommendRequest(
        catalog=catalog,
        model=one_id(model, name="model"),
        history=recommendations_pb2.History(item_ids=id_list(history, name="history")),
        settings=how.settings(),
        unit_id=_unit(unit),
    )
    answer = await transport.unary(RECOMMEND, request)
    return _list(answer.list, model=answer.model, alias=answer.alias)


async def recommend_batch(
    transport: Transport,
    catalog: str,
    *,
    histories: Iterable[Iterable[str]],
    model: str,
    unit: str | None,
    how: How,
) -> list[Recommendations]:
    """Many histories, as few calls as the limits allow, all answered by the same model version."""
    settings = how.settings()
    asked = [
        recommendations_pb2.History(item_ids=id_list(history, name=f"histories[{position}]"))
        for position, history in enumerate(histories)
    ]
    limits = await transport.limits()
    room = max(1, await transport.message_bytes() - settings.ByteSize())
    lists: list[Recommendations] = []
    ref, alias = one_id(model, name="model"), ""
    for piece in cut(
        asked,
        bytes_of=recommendations_pb2.History.ByteSize,
        max_count=min(limits.max_histories_per_call, max(1, _ITEMS_PER_ANSWER // how.k)),
        max_bytes=room,
    ):
        request = recommendations_pb2.BatchRecommendRequest(
            catalog=catalog, model=ref, histories=piece, settings=settings, unit_id=_unit(unit)
        )
        answer = await transport.unary(BATCH, request)
        alias = alias or answer.alias
        lists.extend(_list(one, model=answer.model, alias=alias) for one in answer.lists)
        ref = answer.model  # should the alias move between two calls, the first call's model goes on
    return lists


def _unit(unit: str | None) -> str:
    return "" if unit is None else one_id(unit, name="unit")
