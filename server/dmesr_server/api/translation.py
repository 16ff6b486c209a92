"""Value objects of the server ↔ messages of the wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from dmesr.v1 import admin_pb2, errors_pb2, items_pb2, models_pb2, recommendations_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from dmesr_server.config import LimitsConfig
from dmesr_server.control import AliasRow, CatalogRow, ModelRow, SplitRow
from dmesr_server.errors import ServiceError
from dmesr_server.serving.recommender import RankedList, Strategy
from dmesr_server.store import StoredItem, TableStats

OUTCOMES: Mapping[str, items_pb2.RowOutcome.ValueType] = {
    "inserted": items_pb2.ROW_OUTCOME_INSERTED,
    "updated": items_pb2.ROW_OUTCOME_UPDATED,
    "unchanged": items_pb2.ROW_OUTCOME_UNCHANGED,
}

_STRATEGIES: Mapping[Strategy, recommendations_pb2.Strategy.ValueType] = {
    Strategy.MODEL: recommendations_pb2.STRATEGY_MODEL,
    Strategy.POPULARITY: recommendations_pb2.STRATEGY_POPULARITY,
    Strategy.SIMILAR: recommendations_pb2.STRATEGY_SIMILAR,
}


def timestamp(moment: datetime | None) -> Timestamp | None:
    """A moment in UTC; None stays absent."""
    if moment is None:
        return None
    wire = Timestamp()
    wire.FromDatetime(moment)
    return wire


def row_problem(error: ServiceError) -> items_pb2.RowProblem:
    """Why a row, or a part of it, was not taken."""
    return items_pb2.RowProblem(reason=error.reason_number, message=error.message, metadata=dict(error.metadata))


def recorded_problem(problem: Mapping[str, Any] | None) -> items_pb2.RowProblem | None:
    """A problem as the control database keeps it: reason, message, metadata."""
    if not problem:
        return None
    return items_pb2.RowProblem(
        reason=reason_number(str(problem.get("reason", "INTERNAL"))),
        message=str(problem.get("message", "")),
        metadata={key: str(value) for key, value in (problem.get("metadata") or {}).items()},
    )


def reason_number(reason: str) -> errors_pb2.ErrorReason.ValueType:
    """A reason by its name; INTERNAL for one that this wire does not know."""
    name = f"ERROR_REASON_{reason}"
    known = name in set(errors_pb2.ErrorReason.keys())
    return errors_pb2.ErrorReason.Value(name) if known else errors_pb2.ERROR_REASON_INTERNAL


def rejected(item_id: str, error: ServiceError) -> items_pb2.RowResult:
    """The result of a row that was not written."""
    return items_pb2.RowResult(item_id=item_id, outcome=items_pb2.ROW_OUTCOME_REJECTED, problem=row_problem(error))


def taken(item_id: str, outcome: str, picture_problem: ServiceError | None = None) -> items_pb2.RowResult:
    """The result of a row that is stored now."""
    return items_pb2.RowResult(
        item_id=item_id,
        outcome=OUTCOMES[outcome],
        picture_problem=None if picture_problem is None else row_problem(picture_problem),
    )


def attributes(pairs: Iterable[tuple[str, Sequence[str]]]) -> list[items_pb2.Attribute]:
    """Attributes in their own order."""
    return [items_pb2.Attribute(name=name, values=values) for name, values in pairs]


def item(stored: StoredItem) -> items_pb2.Item:
    """An item as it is stored."""
    picture = None if stored.picture_sha256 is None else items_pb2.PictureRef(sha256=stored.picture_sha256)
    return items_pb2.Item(
        item_id=stored.item_id,
        attributes=attributes(stored.attributes),
        picture=picture,
        update_time=timestamp(stored.update_time),
    )


def catalog(row: CatalogRow, *, items: int) -> admin_pb2.Catalog:
    """A catalog and how many items it holds."""
    return admin_pb2.Catalog(
        name=row.name,
        domain=row.domain,
        language=row.language,
        create_time=timestamp(row.create_time),
        items=items,
    )


def table_stats(tables: Iterable[TableStats]) -> list[admin_pb2.TableStats]:
    """The tables by name."""
    return [
        admin_pb2.TableStats(
            name=table.name,
            rows=table.rows,
            version=table.version,
            bytes=table.bytes,
            files=table.files,
            versions=table.versions,
            fragments=table.fragments,
        )
        for table in sorted(tables, key=lambda table: table.name)
    ]


def limits(config: LimitsConfig) -> admin_pb2.Limits:
    """The limits; their names are the configuration's own."""
    return admin_pb2.Limits(**config.model_dump())


def model(row: ModelRow, *, items_adapted: int) -> models_pb2.Model:
    """A published model."""
    return models_pb2.Model(
        name=row.name,
        version=row.version,
        state=models_pb2.ModelState.Value(f"MODEL_STATE_{row.state}"),
        problem=recorded_problem(row.problem),
        recipe_id=row.recipe_id,
        manifest=row.manifest_json,
        digest=row.digest,
        items_adapted=items_adapted,
        aliases=row.aliases,
        create_time=timestamp(row.create_time),
    )


def alias(row: AliasRow, split: SplitRow | None) -> models_pb2.Alias:
    """An alias and who answers some of its calls."""
    return models_pb2.Alias(
        name=row.alias,
        model=row.ref,
        update_time=timestamp(row.update_time),
        split=None
        if split is None
        else models_pb2.TrafficSplit(
            other_alias=split.other_alias, share=split.share, update_time=timestamp(split.update_time)
        ),
    )


def recommendation_list(
    ranked: RankedList, stored: Mapping[str, StoredItem], wanted: Sequence[str]
) -> recommendations_pb2.RecommendationList:
    """A list; with those of the wanted attributes that each item has, in the order wanted."""
    return recommendations_pb2.RecommendationList(
        recommendations=[
            recommendations_pb2.Recommendation(
                item_id=scored.item_id,
                score=scored.score,
                shares=scored.shares,
                attributes=_some_attributes(stored.get(scored.item_id), wanted),
                is_new=scored.is_new,
            )
            for scored in ranked.items
        ],
        strategy=_STRATEGIES[ranked.strategy],
        unknown_item_ids=ranked.unknown_item_ids,
    )


def _some_attributes(stored: StoredItem | None, wanted: Sequence[str]) -> list[items_pb2.Attribute]:
    if stored is None or not wanted:
        return []
    values = dict(stored.attributes)
    return attributes((name, values[name]) for name in wanted if name in values)
