"""LanceDB's index over one source of a table: made, asked, and measured against the exact search."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from lancedb.index import HnswSq, IvfPq, IvfRq

from .database import translated
from .source_matrix import SourceMatrix
from .vector_columns import column_names
from .vectors import VectorTable

#: RaBitQ keeps a bit for each dimension: a million vectors take seconds, where a graph takes most of an hour. What it
#: finds is compared anew by the vectors themselves, and finds as much.
IndexKind = Literal["IVF_RQ", "IVF_HNSW_SQ", "IVF_PQ"]

RECALL_K = 10
RECALL_SAMPLE = 100
WANTED_RECALL = 0.98  # effort is raised until the sample's recall reaches it


@dataclass(frozen=True)
class Effort:
    """How hard a search tries.

    Attributes:
        ef: Candidates kept while the graph is walked (IVF_HNSW_SQ).
        nprobes: Partitions looked at.
        refine: Times k candidates whose distance is computed anew from the vectors themselves.
    """

    ef: int
    nprobes: int
    refine: int


#: From the cheapest; of each kind the first that reaches the wanted recall is taken.
EFFORTS = (
    Effort(ef=64, nprobes=8, refine=10),
    Effort(ef=100, nprobes=16, refine=10),
    Effort(ef=200, nprobes=32, refine=20),
    Effort(ef=400, nprobes=64, refine=40),
    Effort(ef=800, nprobes=128, refine=80),
)


@dataclass(frozen=True)
class IndexState:
    """What an index holds now.

    Attributes:
        kind: Which.
        indexed_rows: In the index.
        unindexed_rows: Written since; searched one by one.
    """

    kind: str
    indexed_rows: int
    unindexed_rows: int


class VectorIndex:
    """The index of one source. Safe for any thread."""

    def __init__(self, table: VectorTable, source: str):
        self._table = table
        self._source = source
        self._key = "item_id"

    @property
    def _column(self) -> str:
        return column_names(self._source)[0]

    def state(self) -> IndexState | None:
        """What it holds; None where there is none."""
        column = self._column

        def act(handle: Any) -> IndexState | None:
            told = handle.index_stats(f"{column}_idx")
            return None if told is None else IndexState(told.index_type, told.num_indexed_rows, told.num_unindexed_rows)

        return self._table.attempt("asking for an index", act)

    def fitting(self, kind: IndexKind) -> IndexKind:
        """The kind that is made where this one is wanted: RaBitQ takes widths of whole bytes, others get IVF_PQ."""
        return "IVF_PQ" if kind == "IVF_RQ" and self._table.sources()[self._source] % 8 else kind

    def build(self, kind: IndexKind) -> None:
        """Makes it, in the place of one that is there. Of a million vectors: RaBitQ half a minute, a graph an hour.

        Args:
            kind: One that is :meth:`fitting`.

        Raises:
            ServiceError: STORE_FULL or STORE_UNAVAILABLE.
        """
        column = self._column
        config = {
            "IVF_RQ": IvfRq(distance_type="cosine"),
            "IVF_HNSW_SQ": HnswSq(distance_type="cosine", m=20, ef_construction=200),
            "IVF_PQ": IvfPq(distance_type="cosine"),
        }[kind]
        self._table.change(
            f"making an index of {self._source}",
            lambda handle: handle.create_index(column, config=config, replace=True),
        )

    def nearest(
        self, vector_D: np.ndarray, k: int, *, effort: Effort, exclude: Collection[str] = ()
    ) -> list[tuple[str, float]]:
        """About the nearest items by cosine, nearest first, equal ones by id."""
        column = self._column
        wanted = k + len(exclude)

        def act(handle: Any) -> Any:
            query = handle.search(vector_D, vector_column_name=column).distance_type("cosine").nprobes(effort.nprobes)
            query = query.ef(max(effort.ef, wanted * effort.refine)).refine_factor(effort.refine)
            return query.select([self._key, "_distance"]).limit(wanted).to_arrow()

        with translated("a search"):
            rows = self._table.attempt("a search", act)
        if rows is None:
            return []
        cosines = np.clip(1.0 - rows["_distance"].to_numpy(), -1.0, 1.0).tolist()
        found = zip(rows[self._key].to_pylist(), cosines, strict=True)
        kept = [pair for pair in found if pair[0] not in exclude]
        return sorted(kept, key=lambda pair: (-pair[1], pair[0]))[:k]

    def tuned(self, matrix: SourceMatrix) -> tuple[Effort, float, int]:
        """The cheapest effort with the wanted recall, that recall@10, and how many vectors it was measured on.

        The sample is of the table's own vectors, each asked for its neighbours without itself.
        """
        ids, units_SD = matrix.sample(RECALL_SAMPLE)
        exact = [
            {found for found, _ in matrix.nearest(unit_D, RECALL_K, exclude=[item_id])}
            for item_id, unit_D in zip(ids, units_SD, strict=True)
        ]
        recall = 0.0
        effort = EFFORTS[0]
        for effort in EFFORTS:
            hits = total = 0
            for item_id, unit_D, wanted in zip(ids, units_SD, exact, strict=True):
                found = {near for near, _ in self.nearest(unit_D, RECALL_K, effort=effort, exclude=[item_id])}
                hits += len(found & wanted)
                total += len(wanted)
            recall = hits / total if total else 0.0
            if recall >= WANTED_RECALL:
                break
        return effort, recall, len(ids)
