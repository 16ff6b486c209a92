"""Recipes: all that shapes a description or a vector, and the id that follows from it.

Two texts, or two vectors, are comparable when their recipes have the same id. Engine versions, times and tokens are
provenance and no part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dmesr_server.control import Control, DescriptionRecipeRow
from dmesr_server.enrichment.describers import Describer, ImportedDescriber
from dmesr_server.enrichment.encoders import Encoder

from .rendering import RENDERING_REVISION
from .routes import needs_text


@dataclass(frozen=True)
class DescriptionRecipe:
    """What shapes the descriptions of one route.

    Attributes:
        route: The route.
        spec: Everything that shapes the text, as JSON: describer, model, is_mllm, prompt_revision, route, domain,
            language, rendering (of the attributes, where the route reads them) and the describer's own settings.
    """

    route: str
    spec: Mapping[str, Any]

    @cached_property
    def recipe_id(self) -> str:
        """16 hex digits."""
        return _digest(self.spec)


@dataclass(frozen=True)
class EmbeddingRecipe:
    """What shapes a set of vectors.

    Attributes:
        encoder: The encoder's settings, as JSON.
        descriptions: The description recipe of each route.
    """

    encoder: Mapping[str, Any]
    descriptions: Mapping[str, DescriptionRecipe]

    @property
    def spec(self) -> dict[str, Any]:
        """Everything that shapes the vectors, as JSON."""
        return {
            "kind": "enrichment",
            "encoder": dict(self.encoder),
            "rendering": RENDERING_REVISION,
            "descriptions": {route: recipe.recipe_id for route, recipe in sorted(self.descriptions.items())},
        }

    @cached_property
    def recipe_id(self) -> str:
        """16 hex digits."""
        return _digest(self.spec)

    def save(self, control: Control, catalog: str) -> None:
        """Keeps the recipe and its description recipes in the control database.

        Raises:
            ServiceError: CATALOG_NOT_FOUND.
        """
        for recipe in self.descriptions.values():
            control.recipes.save_description(catalog, DescriptionRecipeRow(recipe.recipe_id, recipe.route, recipe.spec))
        described = {route: recipe.recipe_id for route, recipe in self.descriptions.items()}
        control.recipes.save_embedding(catalog, self.recipe_id, self.spec, described)


def make(
    *, describer: Describer, encoder: Encoder, domain: str, language: str, routes: Sequence[str] = ()
) -> EmbeddingRecipe:
    """The recipe that a describer and an encoder make for a catalog. Loads nothing.

    Args:
        describer: Makes the descriptions.
        encoder: Makes the vectors.
        domain: The catalog's.
        language: The catalog's.
        routes: What a job asks for. The describer's `recipe_routes` are in the recipe in any case, so a job that is
            asked for fewer fills the same recipe in part.
    """
    return EmbeddingRecipe(
        encoder=encoder.recipe_fields(),
        descriptions={
            route: described(describer, route, domain=domain, language=language)
            for route in describer.routes
            if route in describer.recipe_routes or route in routes
        },
    )


def make_imported(*, model: str, is_mllm: bool, encoder: Encoder) -> EmbeddingRecipe:
    """The recipe of descriptions that were made elsewhere."""
    return make(describer=ImportedDescriber(model=model, is_mllm=is_mllm), encoder=encoder, domain="", language="")


def described(describer: Describer, route: str, *, domain: str, language: str) -> DescriptionRecipe:
    """The recipe of a route's descriptions by a describer. Loads nothing."""
    spec: dict[str, Any] = {
        "describer": describer.name,
        "model": describer.model,
        "is_mllm": describer.is_mllm,
        "route": route,
        "domain": domain,
        "language": language,
    }
    if needs_text(route) and describer.generates:
        spec["rendering"] = RENDERING_REVISION
    return DescriptionRecipe(route, {**spec, **describer.recipe_fields(route)})


def _digest(spec: Mapping[str, Any]) -> str:
    canonical = json.dumps(spec, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
