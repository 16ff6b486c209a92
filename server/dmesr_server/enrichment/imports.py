"""Brings in descriptions that were made elsewhere.

An import makes description recipes of the describer "import" whose identity is the model that made the texts, an
embedding recipe of these and the server's encoder, and binds the given name to it. A job with the describer "import"
under the same name then finds the model through the name, describes nothing, and encodes what was imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dmesr_server.config import Config
from dmesr_server.control import Control
from dmesr_server.errors import ServiceError, invalid_field
from dmesr_server.store import CatalogStore, DescriptionRow, StoredItem

from . import encoders, provenance, recipes, routes, specs
from .describers import ImportedDescriber
from .recipes import EmbeddingRecipe

_MAX_TEXT_BYTES = 64 * 1024
_MAX_AUTHOR_CHARACTERS = 100


@dataclass(frozen=True)
class ImportRow:
    """One description made elsewhere."""

    item_id: str
    route: str
    text: str
    author: str = ""  # where a person wrote it


@dataclass(frozen=True)
class ImportOutcome:
    """What happened to one row.

    Attributes:
        item_id: The row's item, as given.
        outcome: What happened.
        problem: Why it was rejected.
    """

    item_id: str
    outcome: Literal["inserted", "updated", "unchanged", "rejected"]
    problem: ServiceError | None = None


def import_descriptions(
    *,
    control: Control,
    store: CatalogStore,
    config: Config,
    catalog: str,
    model: str,
    is_mllm: bool,
    recipe: str,
    rows: Sequence[ImportRow],
) -> list[ImportOutcome]:
    """Stores a batch of descriptions. Rows that cannot be taken are rejected alone. Blocks.

    Args:
        control: Where the recipe is kept.
        store: The catalog's tables.
        config: The server's encoder.
        catalog: The catalog's name.
        model: Who made them: the model and its revision. Part of the recipe's identity.
        is_mllm: True when a multimodal LLM made them.
        recipe: The name that is bound to the recipe; "default" when empty.
        rows: The batch.

    Returns:
        One outcome for each row, in order, once the batch is durable.

    Raises:
        ServiceError: CATALOG_NOT_FOUND, INVALID_FIELD, ENCODER_UNAVAILABLE, STORE_FULL or STORE_UNAVAILABLE; then
            nothing of the batch was written.
    """
    if not model.strip():
        raise invalid_field("model", "must name who made the descriptions, for instance 'gpt-4o-2024-08-06'")
    described = _recipe(control, config, catalog=catalog, model=model.strip(), is_mllm=is_mllm)
    items = store.items.get([row.item_id for row in rows])
    kept: dict[tuple[str, str], int] = {}
    problems: dict[int, ServiceError] = {}
    repeated: set[int] = set()
    for index, row in enumerate(rows):
        problem = _problem(row, items)
        first = kept.get((row.item_id, row.route))
        if problem is not None:
            problems[index] = problem
        elif first is None:
            kept[row.item_id, row.route] = index
        elif rows[first].text.strip() == row.text.strip():
            repeated.add(index)
        else:
            problems[index] = ServiceError(
                "DUPLICATE_ITEM_ID",
                f"the item {row.item_id} has another description of the route {row.route} earlier in the batch, which "
                "is kept; send one of them",
                item_id=row.item_id,
                route=row.route,
            )
    outcomes = _write(store, described, rows, items, sorted(kept.values()))
    # Bound once something is there: a batch of errors leaves the name as it is.
    described.save(control, catalog)
    if kept:
        control.recipes.bind(catalog, recipe or specs.DEFAULT_RECIPE, described.recipe_id)
    return [
        ImportOutcome(row.item_id, "rejected", problems[index])
        if index in problems
        else ImportOutcome(row.item_id, "unchanged" if index in repeated else outcomes[index])
        for index, row in enumerate(rows)
    ]


def _recipe(control: Control, config: Config, *, catalog: str, model: str, is_mllm: bool) -> EmbeddingRecipe:
    control.catalogs.get(catalog)
    encoder = encoders.create(config.enrichment.encoder)
    return recipes.make_imported(model=model, is_mllm=is_mllm, encoder=encoder)


def _problem(row: ImportRow, items: dict[str, StoredItem]) -> ServiceError | None:
    if row.route not in ImportedDescriber.routes:
        try:
            routes.checked([row.route], ImportedDescriber.routes)
        except ServiceError as error:
            return error
    if row.item_id not in items:
        return ServiceError(
            "ITEM_NOT_FOUND",
            f"there is no item {row.item_id!r:.300}; import the item first",
            item_id=row.item_id[:256],
        )
    if len(row.author) > _MAX_AUTHOR_CHARACTERS or not row.author.isprintable():
        return invalid_field(
            "author", f"must be at most {_MAX_AUTHOR_CHARACTERS} printable characters, got {row.author!r:.80}"
        )
    size = len(row.text.encode())
    if not row.text.strip() or size > _MAX_TEXT_BYTES:
        what = f"has {size} bytes, at most {_MAX_TEXT_BYTES} are allowed" if row.text.strip() else "is empty"
        return ServiceError(
            "DESCRIPTION_UNUSABLE",
            f"the {row.route} description of the item {row.item_id} {what}; leave the row out or send a usable text",
            item_id=row.item_id,
            route=row.route,
            actual=size,
            expected=_MAX_TEXT_BYTES,
        )
    return None


def _write(
    store: CatalogStore,
    recipe: EmbeddingRecipe,
    rows: Sequence[ImportRow],
    items: dict[str, StoredItem],
    chosen: Sequence[int],
) -> dict[int, Literal["inserted", "updated", "unchanged"]]:
    ids = {route: description.recipe_id for route, description in recipe.descriptions.items()}
    stored = {
        (row.item_id, row.route): row
        for row in store.descriptions.get([rows[index].item_id for index in chosen], list(ids.values()))
    }
    outcomes: dict[int, Literal["inserted", "updated", "unchanged"]] = {}
    changed: list[DescriptionRow] = []
    for index in chosen:
        row, item = rows[index], items[rows[index].item_id]
        text = row.text.strip()
        made_from = routes.input_hash(item, row.route) or ""
        before = stored.get((row.item_id, row.route))
        if before is not None and (before.text, before.input_hash) == (text, made_from):
            outcomes[index] = "unchanged"
            continue
        outcomes[index] = "inserted" if before is None else "updated"
        spec = recipe.descriptions[row.route].spec
        describer = ImportedDescriber(model=spec["model"], is_mllm=spec["is_mllm"])
        changed.append(
            DescriptionRow(
                item_id=row.item_id,
                route=row.route,
                recipe_id=ids[row.route],
                input_hash=made_from,
                text=text,
                provenance=provenance.imported(describer, recipe.descriptions[row.route], item=item, author=row.author),
            )
        )
    store.descriptions.upsert(changed)
    return outcomes
