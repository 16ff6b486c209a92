"""Lineage: what a model was made from, how its items have drifted since, and where it was promoted to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from dmesr.rows import to_time
from dmesr.v1 import models_pb2


@dataclass(frozen=True)
class SourceCoverage:
    """How many items a source covers."""

    source: str  # or the route of that name
    description_recipe_id: str  # of the route; "" where none describes it
    described: int  # items with a description
    failed: int  # items whose description failed
    vectors: int  # items with a vector


@dataclass(frozen=True)
class ItemDrift:
    """How the items with vectors differ from those that a model was trained on."""

    basis: str  # "TRAINED": counted from the training's own vectors; "PUBLISHED": from those at its publication
    items_then: int  # with a vector of the model's sources
    items_now: int
    added: int  # of items_now
    changed: int  # of items_now: their vectors are others
    removed: int  # of items_then

    @property
    def drifted(self) -> bool:
        """Whether any item differs."""
        return bool(self.added or self.changed or self.removed)


@dataclass(frozen=True)
class AliasMove:
    """An alias was pointed to another model."""

    alias: str
    action: str  # "PROMOTED" or "ROLLED_BACK"
    model: str  # "name:version" that it points to since
    before: str | None  # "name:version" that it pointed to before; None where the alias was new
    actor: str  # who did it; "" for what was done before that was recorded
    move_time: datetime | None


@dataclass(frozen=True)
class Lineage:
    """The chain from the catalogue to the aliases. The training run itself is in the model's manifest."""

    published_by: str  # "" where that was not recorded
    items_version: int  # of the catalogue's items when it was published; 0 where that was not recorded
    items: int  # of the catalogue when it was published
    items_now: int
    recipe_gone: bool  # its recipe or vectors are no longer there: nothing can be adapted or trained again
    recipe_names: tuple[str, ...]  # bound to its recipe now
    embedding_version: int  # that its training read, by the manifest; 0 where it names none
    embedding_digest: str  # of these vectors, by the manifest
    coverage: tuple[SourceCoverage, ...]  # when it was published; empty where that was not recorded
    coverage_now: tuple[SourceCoverage, ...]
    drift: ItemDrift | None  # None where it cannot be told
    moves: tuple[AliasMove, ...]  # of aliases to it or away from it, oldest first


def to_lineage(wire: models_pb2.Lineage) -> Lineage:
    """What the wire tells."""
    return Lineage(
        published_by=wire.published_by,
        items_version=wire.items_version,
        items=wire.items,
        items_now=wire.items_now,
        recipe_gone=wire.recipe_gone,
        recipe_names=tuple(wire.recipe_names),
        embedding_version=wire.embedding_version,
        embedding_digest=wire.embedding_digest,
        coverage=tuple(map(_coverage, wire.coverage)),
        coverage_now=tuple(map(_coverage, wire.coverage_now)),
        drift=ItemDrift(
            basis=_name(models_pb2.DriftBasis, wire.drift_basis, "DRIFT_BASIS_"),
            items_then=wire.drift.items_then,
            items_now=wire.drift.items_now,
            added=wire.drift.added,
            changed=wire.drift.changed,
            removed=wire.drift.removed,
        )
        if wire.HasField("drift")
        else None,
        moves=tuple(map(_move, wire.moves)),
    )


def _coverage(wire: models_pb2.LineageCoverage) -> SourceCoverage:
    return SourceCoverage(
        source=wire.source,
        description_recipe_id=wire.description_recipe_id,
        described=wire.described,
        failed=wire.failed,
        vectors=wire.vectors,
    )


def _move(wire: models_pb2.AliasMove) -> AliasMove:
    return AliasMove(
        alias=wire.alias,
        action=_name(models_pb2.AliasAction, wire.action, "ALIAS_ACTION_"),
        model=wire.model,
        before=wire.before or None,
        actor=wire.actor,
        move_time=to_time(wire.move_time),
    )


def _name(kind: type[models_pb2.DriftBasis] | type[models_pb2.AliasAction], number: int, prefix: str) -> str:
    """The value's name without its prefix; "UNSPECIFIED" for one that this version does not know."""
    value = kind.DESCRIPTOR.values_by_number.get(number)
    return value.name.removeprefix(prefix) if value is not None else "UNSPECIFIED"
