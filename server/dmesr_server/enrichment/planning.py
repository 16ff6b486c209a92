"""What is to be done for an item: from its hashes alone, without reading a picture or loading a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dmesr_server.store import CatalogStore, DescriptionRow, StoredItem

from . import corrections, rendering, routes
from .recipes import EmbeddingRecipe
from .routes import ORIGINAL


@dataclass(frozen=True)
class Scope:
    """What a job looks at.

    Attributes:
        recipe: The recipe that it fills.
        routes: The routes in scope; the original text always is.
        generates: False where descriptions are only imported (`Describer.generates`).
        retry_failed: Try again what failed before.
        job_id: Of the job; what it has made itself, before it was interrupted, counts as its own.
    """

    recipe: EmbeddingRecipe
    routes: tuple[str, ...]
    generates: bool
    retry_failed: bool = False
    job_id: str = ""


@dataclass(frozen=True)
class Vector:
    """A vector to be written: of a text, or none where the source is absent now."""

    text: str | None
    hash: str | None


@dataclass(frozen=True)
class RouteCount:
    """How one item stands with one route; each is 0 or 1."""

    applicable: int = 0
    described: int = 0  # by this job, before it was interrupted
    reused: int = 0
    failed: int = 0


@dataclass(frozen=True)
class ItemPlan:
    """What is to be done for one item.

    Attributes:
        item: The item.
        describe: Routes to describe.
        drop: Descriptions of routes that no longer apply.
        vectors: Vectors to write by source, as far as they are known before describing.
        counts: How it stands, by route; routes to describe count as applicable only.
        hashes: The stored hashes of its vectors by source.
    """

    item: StoredItem
    describe: tuple[str, ...]
    drop: tuple[DescriptionRow, ...]
    vectors: Mapping[str, Vector]
    counts: Mapping[str, RouteCount]
    hashes: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def needs_work(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.describe or self.drop or self.vectors)

    def vector_of(self, route: str, text: str | None) -> Vector | None:
        """The vector to write for a description that was just made (None: it failed); None when it is there already."""
        wanted = None if text is None else routes.text_hash(text)
        return None if self.hashes.get(route) == wanted else Vector(text, wanted)


def plan(
    item: StoredItem,
    *,
    rows: Mapping[str, DescriptionRow],
    hashes: Mapping[str, str | None],
    scope: Scope,
) -> ItemPlan:
    """Plans one item.

    Args:
        item: The item as it is now.
        rows: Its descriptions by route, of the scope's recipe; a correction in the place of what it corrects.
        hashes: The hashes of its vectors by source.
        scope: What the job looks at.
    """
    describe: list[str] = []
    drop: list[DescriptionRow] = []
    vectors: dict[str, Vector] = {}
    counts: dict[str, RouteCount] = {}

    wanted = routes.original_hash(item)
    current = hashes.get(ORIGINAL)
    if current != wanted:
        vectors[ORIGINAL] = Vector(None if wanted is None else rendering.original_text(item.attributes), wanted)
    counts[ORIGINAL] = RouteCount(
        applicable=int(wanted is not None), reused=int(wanted is not None and current == wanted)
    )

    for route in scope.routes:
        row = rows.get(route)
        made_from = routes.input_hash(item, route)
        text: str | None = None
        if not scope.generates or (row is not None and corrections.is_correction(row)):
            # Imported texts stand whatever became of the item: nobody here can make them anew. So does a person's.
            text = row.text if row is not None else None
            counts[route] = _count(row) if text is not None else RouteCount()
        elif made_from is None:
            if row is not None:
                drop.append(row)
            counts[route] = RouteCount()
        elif row is None or row.input_hash != made_from or _try_again(row, scope):
            describe.append(route)
            counts[route] = RouteCount(applicable=1)
            continue
        else:
            text = row.text
            counts[route] = _count(row, own=row.provenance.get("job_id") == scope.job_id)
        hash_wanted = None if text is None else routes.text_hash(text)
        if hashes.get(route) != hash_wanted:
            vectors[route] = Vector(text, hash_wanted)
    return ItemPlan(
        item=item, describe=tuple(describe), drop=tuple(drop), vectors=vectors, counts=counts, hashes=dict(hashes)
    )


def plan_batch(items: Sequence[StoredItem], *, catalog: CatalogStore, scope: Scope) -> list[ItemPlan]:
    """Plans a batch of items with two reads of the store. Blocks."""
    item_ids = [item.item_id for item in items]
    recipe_ids = [scope.recipe.descriptions[route].recipe_id for route in scope.routes]
    found = corrections.read(catalog.descriptions, item_ids, recipe_ids)
    rows = {item_id: {route: each.row for route, each in of_item.items()} for item_id, of_item in found.items()}
    hashes = catalog.embeddings(scope.recipe.recipe_id).hashes(item_ids)
    return [
        plan(item, rows=rows.get(item.item_id, {}), hashes=hashes.get(item.item_id, {}), scope=scope) for item in items
    ]


def batches(catalog: CatalogStore, *, item_ids: Sequence[str], rows: int) -> Iterator[list[StoredItem]]:
    """The items to look at, ordered by id: all of one snapshot, or those of the ids that there are. Blocks."""
    if not item_ids:
        yield from catalog.items.iterate(rows)
        return
    ordered = sorted(set(item_ids))
    for start in range(0, len(ordered), rows):
        part = ordered[start : start + rows]
        found = catalog.items.get(part)
        yield [found[item_id] for item_id in part if item_id in found]


def _count(row: DescriptionRow | None, *, own: bool = False) -> RouteCount:
    failed = row is not None and row.text is None
    return RouteCount(
        applicable=1, described=int(own and not failed), reused=int(not own and not failed), failed=int(failed)
    )


def _try_again(row: DescriptionRow, scope: Scope) -> bool:
    own = row.provenance.get("job_id") == scope.job_id
    return row.text is None and scope.retry_failed and not own
