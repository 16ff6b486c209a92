"""Takes in batches of a client's own vectors: each row is judged alone.

Shapes: N rows, D width of a source.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from dmesr.v1 import embeddings_pb2 as pb
from dmesr.v1 import items_pb2

from dmesr_server.api import recipes, translation, validation, written_vectors
from dmesr_server.api.parts import Parts
from dmesr_server.api.written_vectors import WrittenVectors
from dmesr_server.control import CatalogRow, RecipeRow
from dmesr_server.errors import ServiceError
from dmesr_server.store import CatalogStore, EmbeddingTable, Looked, RowOutcome, vector_rows


@dataclass(frozen=True, eq=False)
class Incoming:
    """A batch as it came in.

    Attributes:
        request: The message.
        data: Its field of that name: protobuf copies it each time that it is asked for.
    """

    request: pb.WriteEmbeddingsRequest
    data: bytes

    @property
    def size(self) -> int:
        """Bytes, about."""
        return len(self.data)


async def incoming(requests: AsyncIterator[pb.WriteEmbeddingsRequest]) -> AsyncIterator[Incoming]:
    """Batches as they come in."""
    async for request in requests:
        yield Incoming(request, request.data)


@dataclass(frozen=True, eq=False)
class _Verdict:
    """What is to be told of a batch, once it is known what became of the rows that are written."""

    ids: list[str | None]
    places: Sequence[int]  # of the rows that are written
    problems: dict[int, ServiceError]
    repeats: set[int]
    recipe: RecipeRow


@dataclass(frozen=True, eq=False)
class _Batch:
    """A batch that was judged."""

    verdict: _Verdict
    rows: pa.Table  # those to be written, as the table of vectors holds them
    widths: dict[str, int]
    table: EmbeddingTable

    def follows(self, other: _Batch) -> bool:
        """Whether both can be written in one commit."""
        return self.table is other.table and self.widths == other.widths

    @cached_property
    def written(self) -> list[str]:
        """The ids of the rows to be written."""
        ids: list[str] = self.rows["item_id"].to_pylist()
        return ids


@dataclass(frozen=True, eq=False)
class _Commit:
    """Batches that share no item, and are of one table and the same sources."""

    verdicts: list[_Verdict]
    table: EmbeddingTable
    rows: pa.Table
    looked: Looked | None  # None where what is written just before may change what a look would see


@dataclass(frozen=True, eq=False)
class Judged:
    """A group of batches that were looked at; nothing of them is stored yet.

    Attributes:
        commits: The sound ones, up to the first that is refused as a whole.
        error: Why that one was refused.
    """

    commits: list[_Commit]
    error: ServiceError | None


@dataclass(frozen=True, eq=False)
class Stored:
    """What became of a group of batches. Their vectors are let go of.

    Attributes:
        batches: Those that are durable, from the first on, each with the outcomes of the rows that it wrote.
        error: Why the next one was refused as a whole; what follows it was not looked at.
    """

    batches: list[tuple[_Verdict, list[RowOutcome]]]
    error: ServiceError | None


class VectorIntake:
    """Takes in the batches of one stream, group by group. Each step blocks.

    A group may be judged while the one before it is stored, and that one answered meanwhile; no other two at a time.
    """

    def __init__(self, parts: Parts):
        self._parts = parts
        self._before: set[str] = set()  # the items of the group before

    def judge(self, batches: Sequence[Incoming]) -> Judged:
        """Looks at some batches and at what is stored of their items, and makes room for their sources.

        A batch can be refused as a whole with CATALOG_NOT_FOUND, RECIPE_NOT_FOUND, SOURCE_READ_ONLY, INVALID_FIELD,
        MALFORMED_ARROW, UNSUPPORTED_DTYPE, DIMENSION_MISMATCH, or the store's own.
        """
        desk = _Desk(self._parts)
        parsed: list[tuple[pb.WriteEmbeddingsRequest, WrittenVectors]] = []
        judged: list[_Batch] = []
        error: ServiceError | None = None
        try:
            for one in batches:
                parsed.append((one.request, written_vectors.parse(one.data, source=one.request.source)))
        except ServiceError as refused:
            error = refused  # those before it are sound
        try:
            desk.announce(parsed)
            for request, written in parsed:
                judged.append(desk.judged(request, written))
        except ServiceError as refused:
            error = refused
        return Judged(self._commits(judged), error)

    def _commits(self, batches: Sequence[_Batch]) -> list[_Commit]:
        together: list[tuple[list[_Batch], set[str]]] = []
        for batch in batches:
            some, ids = together[-1] if together else ([], set())
            # The same item again is another write: what it becomes is told of each.
            if not some or not batch.follows(some[0]) or not ids.isdisjoint(batch.written):
                some, ids = [], set()
                together.append((some, ids))
            some.append(batch)
            ids.update(batch.written)
        before, self._before = self._before, set()
        commits = []
        for some, ids in together:
            table = some[0].table
            rows = pa.concat_tables([batch.rows for batch in some])  # chunks side by side: no copy
            apart = before.isdisjoint(ids) and self._before.isdisjoint(ids)
            looked = table.look(rows) if ids and apart else None
            commits.append(_Commit([batch.verdict for batch in some], table, rows, looked))
            self._before |= ids
        return commits

    def store(self, judged: Judged) -> Stored:
        """Stores the sound rows of judged batches, in one commit for each list of them."""
        batches: list[tuple[_Verdict, list[RowOutcome]]] = []
        try:
            for commit in judged.commits:
                outcomes: Iterator[RowOutcome] = iter(())
                if commit.rows.num_rows:
                    outcomes = iter(commit.table.upsert_rows(commit.rows, looked=commit.looked))
                    self._parts.serving.vectors_changed()
                batches += [(verdict, list(islice(outcomes, len(verdict.places)))) for verdict in commit.verdicts]
        except ServiceError as error:
            return Stored(batches, error)
        return Stored(batches, judged.error)


def answers(stored: Stored) -> list[pb.WriteEmbeddingsResponse]:
    """What is told of the batches that are durable."""
    return [_answer(verdict, outcomes) for verdict, outcomes in stored.batches]


class _Desk:
    """Judges the batches of one group. What is asked of the store for one of them serves the others."""

    def __init__(self, parts: Parts):
        self._parts = parts
        self._places: dict[tuple[str, str, bool], tuple[CatalogRow, CatalogStore, RecipeRow]] = {}
        self._existing: dict[str, set[str]] = {}
        self._declared: dict[EmbeddingTable, dict[str, int]] = {}

    def announce(self, parsed: Sequence[tuple[pb.WriteEmbeddingsRequest, WrittenVectors]]) -> None:
        """Looks up the items of all batches at once."""
        if len({request.catalog for request, _ in parsed}) != 1:
            return  # a stream that jumps between catalogs is served batch by batch
        row, catalog = self._parts.catalog(parsed[0][0].catalog)
        ids = {item_id for _, written in parsed for item_id in written.ids.to_pylist() if item_id}
        self._existing[row.name] = catalog.items.existing(list(ids))

    def judged(self, request: pb.WriteEmbeddingsRequest, written: WrittenVectors) -> _Batch:
        row, catalog, recipe = self._place(request)
        for source in written.columns:
            if not recipes.source_is_external(recipe, source):
                raise ServiceError(
                    "SOURCE_READ_ONLY",
                    f"the source {source!r} of recipe {recipe.recipe_id} is made by enrichment; write under another "
                    "source name, or into a recipe of your own (create_recipe)",
                    source=source,
                    recipe=recipe.recipe_id,
                )
        table = catalog.embeddings(recipe.recipe_id)
        ids: list[str | None] = written.ids.to_pylist()
        declared = self._declared.get(table)
        if declared is None:
            declared = self._declared[table] = table.sources()
        _check_widths(ids, written, declared)
        hashes = {source: written.hashes(source) for source in written.columns}
        problems, repeats, places = self._rows(catalog, row.name, ids, written, hashes)
        if places:
            for source, width in written.widths.items():
                if source not in declared:
                    table.declare(source, width)
                    declared[source] = width
        rows = vector_rows(written.ids, written.columns, hashes)
        if len(places) < len(ids):
            rows = rows.take(pa.array(places, pa.int64()))
        verdict = _Verdict(ids=ids, places=places, problems=problems, repeats=repeats, recipe=recipe)
        return _Batch(verdict=verdict, rows=rows, widths=written.widths, table=table)

    def _place(self, request: pb.WriteEmbeddingsRequest) -> tuple[CatalogRow, CatalogStore, RecipeRow]:
        key = (request.catalog, request.recipe, request.create_recipe)
        if key not in self._places:
            row, catalog = self._parts.catalog(request.catalog)
            self._places[key] = (row, catalog, self._recipe(row.name, request))
        return self._places[key]

    def _recipe(self, catalog: str, request: pb.WriteEmbeddingsRequest) -> RecipeRow:
        name = validation.recipe_ref(request.recipe)
        control = self._parts.control
        try:
            return control.recipes.resolve(catalog, name)
        except ServiceError as error:
            if error.reason != "RECIPE_NOT_FOUND" or not request.create_recipe:
                raise
        return recipes.create_external(control, catalog=catalog, name=name)

    def _rows(
        self,
        catalog: CatalogStore,
        catalog_name: str,
        ids: Sequence[str | None],
        written: WrittenVectors,
        hashes: dict[str, list[str]],
    ) -> tuple[dict[int, ServiceError], set[int], Sequence[int]]:
        """Problems by place, places that repeat an earlier row exactly, and the places that are to be written."""
        existing = self._existing.get(catalog_name)
        if existing is None:
            existing = catalog.items.existing([item_id for item_id in ids if item_id])
        finite: dict[str, npt.NDArray[np.bool_]] = {
            source: np.asarray(np.isfinite(written.matrix(source)).all(axis=1)) for source in written.columns
        }
        whole = all(finite[source].all() and not column.null_count for source, column in written.columns.items())
        # An item that is there has a sound id, so nothing is left to look at row by row.
        if whole and len(distinct := set(ids)) == len(ids) and distinct <= existing:
            return {}, set(), range(len(ids))
        limits = self._parts.config.limits
        absent = {source: column.is_null().to_pylist() for source, column in written.columns.items()}
        problems: dict[int, ServiceError] = {}
        repeats: set[int] = set()
        first: dict[str, int] = {}
        for place, given in enumerate(ids):
            item_id = given or ""
            problem = validation.item_id_problem(item_id, limits)
            if problem is None and item_id not in existing:
                problem = ServiceError(
                    "ITEM_NOT_FOUND", f"the catalog has no item {item_id!r}; upsert the item first", item_id=item_id
                )
            for source in written.columns:
                if problem is None and absent[source][place]:
                    problem = ServiceError(
                        "VECTOR_MISSING", f"the vector of item {item_id!r} is null; leave the row out", item_id=item_id
                    )
                if problem is None and not finite[source][place]:
                    problem = _not_finite(item_id, written.matrix(source)[place])
            earlier = first.get(item_id)
            if problem is None and earlier is not None:
                if all(of[earlier] == of[place] for of in hashes.values()):
                    repeats.add(place)
                    continue
                problem = ServiceError(
                    "DUPLICATE_ITEM_ID",
                    f"item {item_id!r} stands in row {earlier} of the batch with another vector, which is kept; write "
                    "an item once in a batch",
                    item_id=item_id,
                    first_row=earlier,
                    row=place,
                )
            if problem is not None:
                problems[place] = problem
            else:
                first[item_id] = place
        return problems, repeats, list(first.values())


def _check_widths(ids: Sequence[str | None], written: WrittenVectors, declared: dict[str, int]) -> None:
    for source, width in written.widths.items():
        expected = declared.get(source)
        if expected is not None and expected != width:
            first = next((item_id for item_id in ids if item_id is not None), "")
            raise ServiceError(
                "DIMENSION_MISMATCH",
                f"the vectors, from item {first!r} on, are {width} wide, the source {source!r} declares {expected}; "
                "write vectors of that width or use another source name",
                source=source,
                expected=expected,
                actual=width,
                item_id=first,
            )


def _not_finite(item_id: str, vector_D: np.ndarray) -> ServiceError:
    column = int(np.flatnonzero(~np.isfinite(vector_D))[0])
    return ServiceError(
        "NON_FINITE_VECTOR",
        f"the vector of item {item_id!r} holds {vector_D[column]} at position {column}; write finite numbers",
        item_id=item_id,
        position=column,
        actual=vector_D[column],
    )


def _answer(verdict: _Verdict, outcomes: list[RowOutcome]) -> pb.WriteEmbeddingsResponse:
    outcome_at = dict(zip(verdict.places, outcomes, strict=True))
    results: list[items_pb2.RowResult] = []
    for place, item_id in enumerate(verdict.ids):
        if place in verdict.problems:
            results.append(translation.rejected(item_id or "", verdict.problems[place]))
        else:
            outcome = "unchanged" if place in verdict.repeats else outcome_at[place]
            results.append(translation.taken(item_id or "", outcome))
    return pb.WriteEmbeddingsResponse(results=results, recipe_id=verdict.recipe.recipe_id)
