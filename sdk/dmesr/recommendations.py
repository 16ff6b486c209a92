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


def _list(one: recommendations_pb2.RecommendationList, model: str) -> Recommendations:
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
        strategy=Strategy(name) if name in Strategy.__members__ else Strategy.UNSPECIFIED,
        unknown_item_ids=tuple(one.unknown_item_ids),
    )


def _settings(
    *, k: int, exclude_seen: bool, allow: Iterable[str] | None, deny: Iterable[str] | None, attributes: Iterable[str]
) -> recommendations_pb2.RecommendSettings:
    return recommendations_pb2.RecommendSettings(
        k=positive(k, name="k"),
        include_seen=not exclude_seen,
        allow_item_ids=()
        if allow is None
        else id_list(allow, name="allow", when_empty="nothing could be recommended: pass None to allow every item"),
        deny_item_ids=() if deny is None else id_list(deny, name="deny"),
        attributes=id_list(attributes, name="attributes"),
    )


async def recommend(
    transport: Transport,
    catalog: str,
    *,
    history: Iterable[str],
    k: int,
    model: str,
    exclude_seen: bool,
    allow: Iterable[str] | None,
    deny: Iterable[str] | None,
    attributes: Iterable[str],
) -> Recommendations:
    """One history, one call."""
    request = recommendations_pb2.RecommendRequest(
        catalog=catalog,
        model=one_id(model, name="model"),
        history=recommendations_pb2.History(item_ids=id_list(history, name="history")),
        settings=_settings(k=k, exclude_seen=exclude_seen, allow=allow, deny=deny, attributes=attributes),
    )
    answer = await transport.unary(RECOMMEND, request)
    return _list(answer.list, answer.model)


async def recommend_batch(
    transport: Transport,
    catalog: str,
    *,
    histories: Iterable[Iterable[str]],
    k: int,
    model: str,
    exclude_seen: bool,
    allow: Iterable[str] | None,
    deny: Iterable[str] | None,
    attributes: Iterable[str],
) -> list[Recommendations]:
    """Many histories, as few calls as the limits allow, all answered by the same model version."""
    settings = _settings(k=k, exclude_seen=exclude_seen, allow=allow, deny=deny, attributes=attributes)
    asked = [
        recommendations_pb2.History(item_ids=id_list(history, name=f"histories[{position}]"))
        for position, history in enumerate(histories)
    ]
    limits = await transport.limits()
    room = max(1, await transport.message_bytes() - settings.ByteSize())
    lists: list[Recommendations] = []
    ref = one_id(model, name="model")
    for piece in cut(
        asked,
        bytes_of=recommendations_pb2.History.ByteSize,
        max_count=min(limits.max_histories_per_call, max(1, _ITEMS_PER_ANSWER // k)),
        max_bytes=room,
    ):
        request = recommendations_pb2.BatchRecommendRequest(
            catalog=catalog, model=ref, histories=piece, settings=settings
        )
        answer = await transport.unary(BATCH, request)
        lists.extend(_list(one, answer.model) for one in answer.lists)
        ref = answer.model  # should the alias move between two calls, the first call's model goes on
    return lists
