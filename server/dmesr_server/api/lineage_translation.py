"""Lineage → messages of the wire."""

from __future__ import annotations

from dataclasses import asdict

from dmesr.v1 import models_pb2 as pb

from dmesr_server.api.translation import timestamp
from dmesr_server.control import MoveRow
from dmesr_server.serving.lineage import Lineage, SourceCoverage


def lineage(found: Lineage) -> pb.Lineage:
    """The chain of one model."""
    drift = found.drift
    return pb.Lineage(
        published_by=found.published_by,
        items_version=found.items_version,
        items=found.items,
        items_now=found.items_now,
        recipe_gone=found.recipe_gone,
        recipe_names=found.recipe_names,
        embedding_version=found.embedding_version,
        embedding_digest=found.embedding_digest,
        coverage=map(_coverage, found.coverage),
        coverage_now=map(_coverage, found.coverage_now),
        drift_basis=pb.DriftBasis.Value(f"DRIFT_BASIS_{found.drift_from or 'UNSPECIFIED'}"),
        drift=None
        if drift is None
        else pb.LineageDrift(
            items_then=drift.then,
            items_now=drift.now,
            added=drift.added,
            changed=drift.changed,
            removed=drift.removed,
        ),
        moves=map(_move, found.moves),
    )


def _coverage(found: SourceCoverage) -> pb.LineageCoverage:
    return pb.LineageCoverage(**asdict(found))


def _move(row: MoveRow) -> pb.AliasMove:
    return pb.AliasMove(
        alias=row.alias,
        action=pb.AliasAction.Value(f"ALIAS_ACTION_{row.action}"),
        model=row.model,
        before=row.before or "",
        actor=row.actor,
        move_time=timestamp(row.move_time),
    )
