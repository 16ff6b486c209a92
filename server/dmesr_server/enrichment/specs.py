"""What a job is asked to do, and the describer, encoder and recipe that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from dmesr_server.config import Config
from dmesr_server.control import CatalogRow, Control, RecipeRow
from dmesr_server.errors import ServiceError, invalid_field

from . import describers, encoders, recipes, routes
from .describers import Describer, ImportedDescriber
from .encoders import Encoder
from .recipes import EmbeddingRecipe

DEFAULT_RECIPE = "default"


@dataclass(frozen=True)
class JobSpec:
    """What a job is asked to do (`JobSpec` of the wire).

    Attributes:
        recipe: The name that is bound to the recipe that these settings make.
        routes: The routes to describe; empty means all. The original text is encoded always.
        item_ids: Only these items; empty means all.
        limit: At most so many items that need work; 0 means no limit.
        describer: Its name; empty takes the configured one.
        encoder: A model, or a kind and a model; empty takes the configured one.
        retry_failed: Try again the descriptions that failed before.
        auto: Started by the server itself after an upsert.
    """

    recipe: str = DEFAULT_RECIPE
    routes: tuple[str, ...] = ()
    item_ids: tuple[str, ...] = ()
    limit: int = 0
    describer: str = ""
    encoder: str = ""
    retry_failed: bool = False
    auto: bool = False

    def to_json(self) -> dict[str, Any]:
        """As it is kept in the control database."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> JobSpec:
        """As it was kept; what a later version added is left out."""
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
        }
        return cls(**{name: value for name, value in values.items() if name in known})


@dataclass(frozen=True)
class Means:
    """What a job works with. Nothing of it is loaded yet.

    Attributes:
        describer: Makes the descriptions.
        encoder: Makes the vectors.
        encoder_name: The encoder as kind and model: what another process makes the same one from.
        recipe: The recipe that both make in the catalog.
        routes: The routes in scope.
    """

    describer: Describer
    encoder: Encoder
    encoder_name: str
    recipe: EmbeddingRecipe
    routes: tuple[str, ...]


def means(*, control: Control, config: Config, catalog: CatalogRow, spec: JobSpec, recipe: str = "") -> Means:
    """Chooses describer and encoder and makes their recipe.

    Args:
        control: Where imported recipes are looked up.
        config: The server's describer and encoder, and their settings.
        catalog: Its domain and language are part of the recipe.
        spec: What is asked.
        recipe: Name or id of the recipe under which descriptions were imported; the spec's name when empty.

    Raises:
        ServiceError: DESCRIBER_UNAVAILABLE, ENCODER_UNAVAILABLE, UNKNOWN_ROUTE, INVALID_FIELD; with the describer
            "import" RECIPE_NOT_FOUND or DESCRIBER_UNAVAILABLE when nothing was imported under the recipe's name.
    """
    if spec.limit < 0:
        raise invalid_field("spec.limit", f"must be 0 (no limit) or more, got {spec.limit}")
    if not spec.recipe:
        raise invalid_field("spec.recipe", "must not be empty")
    name = spec.describer or config.enrichment.describer
    describer: Describer
    if name == describers.IMPORT:
        describer = imported(control, catalog=catalog.name, recipe=recipe or spec.recipe)
    else:
        describer = describers.create(name, config.enrichment)
    chosen = encoders.chosen(spec.encoder, config.enrichment.encoder)
    encoder = encoders.create(chosen)
    # What was imported is encoded whatever its route: nothing has to be paid for.
    wanted = spec.routes if describer.generates else spec.routes or describer.routes
    return Means(
        describer=describer,
        encoder=encoder,
        encoder_name=f"{chosen.kind}:{chosen.model}",
        recipe=recipes.make(
            describer=describer,
            encoder=encoder,
            domain=catalog.domain,
            language=catalog.language,
            routes=spec.routes,
        ),
        routes=routes.checked(wanted, describer.routes),
    )


def imported(control: Control, *, catalog: str, recipe: str) -> ImportedDescriber:
    """The describer of the descriptions that were imported under a recipe's name.

    An import binds the name to a recipe whose description recipes state the model that made the texts; this reads them.

    Raises:
        ServiceError: RECIPE_NOT_FOUND when the name is unknown, DESCRIBER_UNAVAILABLE when it is bound to a recipe
            that was not imported.
    """
    found = control.recipes.resolve(catalog, recipe)
    spec = imported_spec(control, found)
    if spec is None:
        raise ServiceError(
            "DESCRIBER_UNAVAILABLE",
            f"the recipe {recipe!r:.100} of the catalog {catalog} holds no imported descriptions: import some under "
            "that name, or name the recipe under which they were imported",
            describer=describers.IMPORT,
            catalog=catalog,
            recipe=recipe[:100],
        )
    return ImportedDescriber(model=spec["model"], is_mllm=spec["is_mllm"])


def imported_spec(control: Control, recipe: RecipeRow) -> Mapping[str, Any] | None:
    """The spec of a recipe's descriptions when they were imported, otherwise None."""
    for recipe_id in recipe.description_recipes.values():
        spec = control.recipes.description(recipe_id).spec
        return spec if spec.get("describer") == describers.IMPORT else None
    return None
