"""Embedding recipes as the wire tells them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from dmesr.v1 import embeddings_pb2 as pb

from dmesr_server.api import translation, validation
from dmesr_server.control import Control, EmbeddingRecipeRecord, RecipeRow
from dmesr_server.store import CatalogStore

#: The kind of a recipe that a client made for vectors of its own: no descriptions, no encoder.
EXTERNAL = "external"


def canonical_json(content: Any) -> str:
    """The one JSON text of a value."""
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def is_external(recipe: RecipeRow | EmbeddingRecipeRecord) -> bool:
    """True for a recipe that a client made for vectors of its own."""
    return bool(recipe.spec.get("kind") == EXTERNAL)


def create_external(control: Control, *, catalog: str, name: str) -> RecipeRow:
    """Makes a recipe without descriptions, or finds the one made before under that name.

    Raises:
        ServiceError: INVALID_FIELD for a bad name.
    """
    validation.new_name("recipe", name)
    spec = {"kind": EXTERNAL, "name": name}
    recipe_id = hashlib.sha256(canonical_json(spec).encode()).hexdigest()[:16]
    control.recipes.save_embedding(catalog, recipe_id, spec, {})
    control.recipes.bind(catalog, name, recipe_id)
    return control.recipes.resolve(catalog, name)


def source_is_external(recipe: RecipeRow | EmbeddingRecipeRecord, source: str) -> bool:
    """True for a source whose vectors clients write."""
    return is_external(recipe) or source not in validation.RESERVED_SOURCES


def encoder(recipe: RecipeRow) -> dict[str, Any]:
    """What made the vectors of a recipe; empty for one of a client's own."""
    return {} if is_external(recipe) else dict(recipe.spec.get("encoder", {}))


def sources(recipe: RecipeRow, catalog: CatalogStore) -> list[pb.Source]:
    """The recipe's sources and how many items have each."""
    table = catalog.embeddings(recipe.recipe_id)
    return [
        pb.Source(
            name=name,
            dim=dim,
            description_recipe_id=recipe.description_recipes.get(name, ""),
            external=source_is_external(recipe, name),
            present=table.present(name),
        )
        for name, dim in table.sources().items()
    ]


def message(control: Control, recipe: RecipeRow, catalog: CatalogStore) -> pb.Recipe:
    """The recipe with its sources and the recipes of its descriptions."""
    described = {
        route: control.recipes.description(recipe_id).spec for route, recipe_id in recipe.description_recipes.items()
    }
    return pb.Recipe(
        recipe_id=recipe.recipe_id,
        names=sorted(recipe.names),
        encoder="" if is_external(recipe) else canonical_json(encoder(recipe)),
        sources=sources(recipe, catalog),
        description_recipes={route: canonical_json(spec) for route, spec in described.items()},
        create_time=translation.timestamp(recipe.create_time),
        is_mllm=bool(described) and all(spec.get("is_mllm") for spec in described.values()),
    )
