"""Recipes: what makes a set of vectors comparable, and what a recipe holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dmesr.rows import to_time
from dmesr.v1 import embeddings_pb2


@dataclass(frozen=True)
class Source:
    """One kind of vector that a recipe holds for each item."""

    name: str  # "original", "text", "image", "hybrid", "reflect", or a team's own name
    dim: int
    description_recipe_id: str  # empty for the original text and for a team's own vectors
    external: bool  # written by a client
    present: int  # items that have a vector of this source now


@dataclass(frozen=True)
class Recipe:
    """What makes a set of vectors comparable."""

    recipe_id: str
    names: tuple[str, ...]  # bound to it now
    encoder: Mapping[str, Any]  # model, revision, pooling, truncation, normalisation
    sources: tuple[Source, ...]
    description_recipes: Mapping[str, Mapping[str, Any]]  # by route
    create_time: datetime | None
    is_mllm: bool  # False where no multimodal LLM made its descriptions


@dataclass(frozen=True)
class IndexStats:
    """The index that a search goes through."""

    kind: str  # "IVF_RQ", "IVF_HNSW_SQ" or "IVF_PQ"
    indexed_rows: int
    unindexed_rows: int  # written since; searched one by one
    recall_at_10: float  # share of the exact 10 nearest that it finds
    recall_sample: int  # vectors of the user's own that it was measured on
    build_time: datetime | None


@dataclass(frozen=True)
class SourceStats:
    """Figures of one source."""

    source: Source
    coverage: float  # share of the catalog's items, 0 to 1
    mean_norm: float  # of a sample
    mean_pair_cosine: float  # of random pairs of that sample: near 1 means that the vectors hardly differ
    index: IndexStats | None = None  # None where searches compare with all vectors


@dataclass(frozen=True)
class EmbeddingStats:
    """What a recipe holds."""

    recipe: Recipe
    items: int  # in the catalog
    rows: int  # of the recipe's table
    version: int  # of that table
    sources: tuple[SourceStats, ...]


def source_from_wire(one: embeddings_pb2.Source) -> Source:
    """The wire's source."""
    return Source(one.name, one.dim, one.description_recipe_id, one.external, one.present)


def source_stats_from_wire(one: embeddings_pb2.SourceStats) -> SourceStats:
    """The wire's figures of a source."""
    index = None
    if one.HasField("index"):
        told = one.index
        index = IndexStats(
            kind=told.kind,
            indexed_rows=told.indexed_rows,
            unindexed_rows=told.unindexed_rows,
            recall_at_10=told.recall_at_10,
            recall_sample=told.recall_sample,
            build_time=to_time(told.build_time),
        )
    return SourceStats(source_from_wire(one.source), one.coverage, one.mean_norm, one.mean_pair_cosine, index)


def recipe_from_wire(one: embeddings_pb2.Recipe) -> Recipe:
    """The wire's recipe."""
    return Recipe(
        recipe_id=one.recipe_id,
        names=tuple(one.names),
        encoder=json.loads(one.encoder or "{}"),
        sources=tuple(source_from_wire(source) for source in one.sources),
        description_recipes={route: json.loads(spec or "{}") for route, spec in one.description_recipes.items()},
        create_time=to_time(one.create_time),
        is_mllm=one.is_mllm,
    )
