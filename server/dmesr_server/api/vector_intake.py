"""Takes in batches of a client's own vectors: each row is judged alone.

Shapes: N rows, D width of the source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from dmesr.v1 import embeddings_pb2 as pb
from dmesr.v1 import items_pb2

from dmesr_server.api import recipes, translation, validation, vectors
from dmesr_server.api.parts import Parts
from dmesr_server.api.vectors import WrittenVectors
from dmesr_server.control import RecipeRow
from dmesr_server.errors import ServiceError
from dmesr_server.store import CatalogStore, EmbeddingTable, RowOutcome, SourceColumn


@dataclass(frozen=True)
class Written:
    """What became of a group of batches.

    Attributes:
        answers: Of those that are durable, from the first on.
        error: Why the next one was refused as a whole; what follows it was not looked at.
    """

    answers: list[pb.WriteEmbeddingsResponse]
    error: ServiceError | None


@dataclass(frozen=True, eq=False)
class _Batch:
    """A batch that was judged."""

    written: WrittenVectors
    hashes: list[str]
    recipe: RecipeRow
    table: EmbeddingTable
    source: str
    problems: dict[int, ServiceError]
    repeats: set[int]
    places: list[int]  # rows to be written

    def follows(self, other: _Batch) -> bool:
        """Whether both can be written in one commit."""
        mine, theirs = (batch.written.vectors_ND.shape[1] for batch in (self, other))
        return (self.table is other.table, self.source, mine) == (True, other.source, theirs)

    def ids(self) -> list[str]:
        return [self.written.ids[place] or "" for place in self.places]


def write(parts: Parts, requests: Sequence[pb.WriteEmbeddingsRequest]) -> Written:
    """Stores the sound rows of some batches, in as few commits as their order allows.

    A batch can be refused as a whole with CATALOG_NOT_FOUND, RECIPE_NOT_FOUND, SOURCE_READ_ONLY, INVALID_FIELD,
    MALFORMED_ARROW, UNSUPPORTED_DTYPE, DIMENSION_MISMATCH, or the store's own; nothing of it was written then.
    """
    answers: list[pb.WriteEmbeddingsResponse] = []
    together: list[_Batch] = []
    seen: set[str] = set()
    try:
        for request in requests:
            try:
                batch = _judged(parts, request)
            except ServiceError:
                answers += _stored(parts, together)
                together = []
                raise
            ids = batch.ids()
            # The same item again is another write: what it becomes is told of each.
            if together and (not batch.follows(together[0]) or not seen.isdisjoint(ids)):
                answers += _stored(parts, together)
                together, seen = [], set()
            together.append(batch)
            seen.update(ids)
        answers += _stored(parts, together)
    except ServiceError as error:
        return Written(answers, error)
    return Written(answers, None)


def _judged(parts: Parts, request: pb.WriteEmbeddingsRequest) -> _Batch:
    row, catalog = parts.catalog(request.catalog)
    source = validation.source_name(request.source)
    written = vectors.parse(request.data)  # before anything is made for it
    recipe = _recipe(parts, row.name, request)
    if not recipes.source_is_external(recipe, source):
        raise ServiceError(
            "SOURCE_READ_ONLY",
            f"the source {source!r} of recipe {recipe.recipe_id} is made by enrichment; write under another source "
            "name, or into a recipe of your own (create_recipe)",
            source=source,
            recipe=recipe.recipe_id,
        )
    table = catalog.embeddings(recipe.recipe_id)
    width = written.vectors_ND.shape[1]
    declared = table.sources().get(source)
    if declared is not None and declared != width:
        first = next((item_id for item_id in written.ids if item_id is not None), "")
        raise ServiceError(
            "DIMENSION_MISMATCH",
            f"the vectors, from item {first!r} on, are {width} wide, the source {source!r} declares {declared}; write "
            "vectors of that width or use another source name",
            source=source,
            expected=declared,
            actual=width,
            item_id=first,
        )
    hashes = written.hashes()
    problems, repeats, places = _judge(parts, catalog, written, hashes)
    if places:
        table.declare(source, width)
    return _Batch(written, hashes, recipe, table, source, problems, repeats, places)


def _stored(parts: Parts, together: Sequence[_Batch]) -> list[pb.WriteEmbeddingsResponse]:
    """Writes batches that share no item, in one commit; their answers."""
    ids = [item_id for batch in together for item_id in batch.ids()]
    outcomes: Iterator[RowOutcome] = iter(())
    if ids:
        first = together[0]
        column = SourceColumn(
            vectors=np.concatenate([batch.written.vectors_ND[batch.places] for batch in together]),
            present=np.ones(len(ids), bool),
            hashes=[batch.hashes[place] for batch in together for place in batch.places],
        )
        outcomes = iter(first.table.upsert(ids, {first.source: column}))
        parts.serving.vectors_changed()
    answers = []
    for batch in together:
        outcome_at = dict(zip(batch.places, outcomes, strict=False))
        results: list[items_pb2.RowResult] = []
        for place, item_id in enumerate(batch.written.ids):
            if place in batch.problems:
                results.append(translation.rejected(item_id or "", batch.problems[place]))
            else:
                outcome = "unchanged" if place in batch.repeats else outcome_at[place]
                results.append(translation.taken(item_id or "", outcome))
        answers.append(pb.WriteEmbeddingsResponse(results=results, recipe_id=batch.recipe.recipe_id))
    return answers


def _recipe(parts: Parts, catalog: str, request: pb.WriteEmbeddingsRequest) -> RecipeRow:
    name = validation.recipe_ref(request.recipe)
    try:
        return parts.control.recipes.resolve(catalog, name)
    except ServiceError as error:
        if error.reason != "RECIPE_NOT_FOUND" or not request.create_recipe:
            raise
    return recipes.create_external(parts.control, catalog=catalog, name=name)


def _judge(
    parts: Parts, catalog: CatalogStore, written: WrittenVectors, hashes: Sequence[str]
) -> tuple[dict[int, ServiceError], set[int], list[int]]:
    """Problems by place, places that repeat an earlier row exactly, and the places that are to be written."""
    finite_N = np.isfinite(written.vectors_ND).all(axis=1)
    existing = catalog.items.existing([item_id for item_id in written.ids if item_id])
    problems: dict[int, ServiceError] = {}
    repeats: set[int] = set()
    first: dict[str, int] = {}
    for place, given in enumerate(written.ids):
        item_id = given or ""
        problem = validation.item_id_problem(item_id, parts.config.limits)
        if problem is None and item_id not in existing:
            problem = ServiceError(
                "ITEM_NOT_FOUND", f"the catalog has no item {item_id!r}; upsert the item first", item_id=item_id
            )
        if problem is None and written.absent_N[place]:
            problem = ServiceError(
                "VECTOR_MISSING", f"the vector of item {item_id!r} is null; leave the row out", item_id=item_id
            )
        if problem is None and not finite_N[place]:
            column = int(np.flatnonzero(~np.isfinite(written.vectors_ND[place]))[0])
            problem = ServiceError(
                "NON_FINITE_VECTOR",
                f"the vector of item {item_id!r} holds {written.vectors_ND[place, column]} at position {column}; "
                "write finite numbers",
                item_id=item_id,
                position=column,
                actual=written.vectors_ND[place, column],
            )
        earlier = first.get(item_id)
        if problem is None and earlier is not None:
            if hashes[earlier] == hashes[place]:
                repeats.add(place)
                continue
            problem = ServiceError(
                "DUPLICATE_ITEM_ID",
                f"item {item_id!r} stands in row {earlier} of the batch with another vector, which is kept; write an "
                "item once in a batch",
                item_id=item_id,
                first_row=earlier,
                row=place,
            )
        if problem is not None:
            problems[place] = problem
        else:
            first[item_id] = place
    return problems, repeats, list(first.values())
