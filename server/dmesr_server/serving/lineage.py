"""Lineage: what a model was made from, kept when it is published, and how far its items have drifted since."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dmesr_server.caller import caller
from dmesr_server.control import Control, ModelRow, MoveRow, RecipeRow
from dmesr_server.errors import ServiceError
from dmesr_server.serving.artefact import parse_manifest
from dmesr_server.store import CatalogStore, ItemDrift, short_hashes

#: What drift is counted from: the very vectors that the training read, or those that there were at publication, where
#: the training's version was gone by then or is not named by the manifest.
TRAINED = "TRAINED"
PUBLISHED = "PUBLISHED"


@dataclass(frozen=True)
class SourceCoverage:
    """How many items a source covers.

    Attributes:
        source: The source, or the route of that name.
        description_recipe_id: Of the route; "" where the source is described by none.
        described: Items with a description.
        failed: Items whose description failed.
        vectors: Items with a vector.
    """

    source: str
    description_recipe_id: str
    described: int
    failed: int
    vectors: int


@dataclass(frozen=True)
class Lineage:
    """The chain from the catalogue to the aliases.

    Attributes:
        published_by: Who published it; "" where that was not recorded.
        items_version: Of the catalogue's items, at publication; 0 where that was not recorded.
        items: Items of the catalogue at publication.
        items_now: Items of the catalogue now.
        recipe_gone: The recipe, or its vectors, are no longer there: nothing can be adapted or trained again.
        recipe_names: Names bound to the recipe now.
        embedding_version: Version of the vectors that the training read, by the manifest; 0 where it says none.
        embedding_digest: Their digest, by the manifest.
        coverage: By source, at publication; empty where that was not recorded.
        coverage_now: By source, now.
        drift_from: What the drift is counted from: `TRAINED`, `PUBLISHED`, or "" where it cannot be told.
        drift: How the items differ; None where it cannot be told.
        moves: When aliases were pointed to it or away from it, oldest first.
    """

    published_by: str
    items_version: int
    items: int
    items_now: int
    recipe_gone: bool
    recipe_names: tuple[str, ...]
    embedding_version: int
    embedding_digest: str
    coverage: tuple[SourceCoverage, ...]
    coverage_now: tuple[SourceCoverage, ...]
    drift_from: str
    drift: ItemDrift | None
    moves: tuple[MoveRow, ...]


def keep(row: ModelRow, *, control: Control, catalog: CatalogStore) -> None:
    """Keeps what a model is made from, right after its publication. What was kept first stays. Blocks.

    Raises:
        ServiceError: STORE_FULL or STORE_UNAVAILABLE.
    """
    if control.lineage.origin(row.catalog, row.name, row.version) is not None:
        return
    manifest = parse_manifest(row.manifest_json)
    sources = [source.name for source in manifest.sources]
    drift_from, coverage = "", []
    if sources:
        version, drift_from = _trained_on(row, catalog)
        snapshot = catalog.embeddings(row.recipe_id).snapshot(version)
        trained = catalog.trained(row.ref)
        trained.drop()  # what a catalog of the same name, dropped since, or a killed process may have left
        trained.keep(short_hashes(snapshot, sources))
        coverage = _coverage(catalog, control.recipes.resolve(row.catalog, row.recipe_id))
    origin = {
        "published_by": caller(),
        "items_version": catalog.items.version(),
        "items": catalog.items.count(),
        "drift_from": drift_from,
        "coverage": [asdict(one) for one in coverage],
    }
    control.lineage.keep_origin(row.catalog, row.name, row.version, origin)


def trace(row: ModelRow, *, control: Control, catalog: CatalogStore) -> Lineage:
    """The chain of one model. Reads the hash of every item; blocks.

    Raises:
        ServiceError: STORE_UNAVAILABLE.
    """
    manifest = parse_manifest(row.manifest_json)
    told = _told(row)
    origin = control.lineage.origin(row.catalog, row.name, row.version) or {}
    sources = [source.name for source in manifest.sources]
    recipe = _recipe(row, control) if sources else None
    gone = bool(sources) and (recipe is None or not catalog.embeddings(row.recipe_id).version())
    drift_from, drift = origin.get("drift_from", ""), None
    if drift_from:
        snapshot = catalog.embeddings(row.recipe_id).snapshot()
        drift = catalog.trained(row.ref).drift(short_hashes(snapshot, sources))
    return Lineage(
        published_by=origin.get("published_by", ""),
        items_version=origin.get("items_version", 0),
        items=origin.get("items", 0),
        items_now=catalog.items.count(),
        recipe_gone=gone,
        recipe_names=() if recipe is None else recipe.names,
        embedding_version=told[0],
        embedding_digest=told[1],
        coverage=tuple(SourceCoverage(**one) for one in origin.get("coverage", ())),
        coverage_now=() if recipe is None else tuple(_coverage(catalog, recipe)),
        drift_from=drift_from,
        drift=drift,
        moves=tuple(control.lineage.moves(row.catalog, row.ref)),
    )


def _trained_on(row: ModelRow, catalog: CatalogStore) -> tuple[int | None, str]:
    """The version of the vectors that the training read, if it is there, else the newest; and which of both it is."""
    table = catalog.embeddings(row.recipe_id)
    version, digest = _told(row)
    for candidate in (version or None, None):
        try:
            if digest and table.digest(candidate) == digest:
                return candidate, TRAINED
        except ServiceError as error:
            if error.reason != "VERSION_NOT_FOUND":
                raise
    return None, PUBLISHED


def _told(row: ModelRow) -> tuple[int, str]:
    """Version and digest of the vectors that the training read, as the manifest tells them."""
    # The manifest as it came: these two keys are the trainer's word, which the server does without.
    manifest: Mapping[str, Any] = json.loads(row.manifest_json)
    version, digest = manifest.get("embedding_version"), manifest.get("embedding_digest")
    return (
        version if isinstance(version, int) and 0 < version < 2**63 else 0,
        digest if isinstance(digest, str) else "",
    )


def _recipe(row: ModelRow, control: Control) -> RecipeRow | None:
    try:
        return control.recipes.resolve(row.catalog, row.recipe_id)
    except ServiceError as error:
        if error.reason != "RECIPE_NOT_FOUND":
            raise
        return None


def _coverage(catalog: CatalogStore, recipe: RecipeRow) -> list[SourceCoverage]:
    vectors = catalog.embeddings(recipe.recipe_id)
    sources: Sequence[str] = list(dict.fromkeys([*vectors.sources(), *recipe.description_recipes]))
    found = []
    for source in sources:
        recipe_id = recipe.description_recipes.get(source, "")
        described, failed = catalog.descriptions.count(recipe_id) if recipe_id else (0, 0)
        found.append(SourceCoverage(source, recipe_id, described, failed, vectors.present(source)))
    return found
