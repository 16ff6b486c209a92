"""The prompt of one item and route as its describer would send it. Generates nothing and loads no model."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from dmesr_server.config import Config
from dmesr_server.control import CatalogRow, Control
from dmesr_server.errors import ServiceError
from dmesr_server.pictures.decoders import Decoders, DecodersUnavailableError
from dmesr_server.store import CatalogStore, StoredItem

from . import describers, describing, recipes, routes
from .describers import Describer, PromptTurn, ShowsPrompts


@dataclass(frozen=True)
class Preview:
    """A prompt that is only shown.

    Attributes:
        describer: Its name.
        model: The model and its revision.
        prompt_revision: The prompts' revision.
        recipe_id: The description recipe that the describer makes now.
        asked_recipe_id: The one that the asked recipe has for the route; empty where none was asked for.
        turns: In order.
        picture_size_px: Width and height as sent; None where no picture is.
        picture_tokens: The picture's size in tokens; None where nobody can tell without the model.
    """

    describer: str
    model: str
    prompt_revision: str
    recipe_id: str
    asked_recipe_id: str
    turns: tuple[PromptTurn, ...]
    picture_size_px: tuple[int, int] | None
    picture_tokens: int | None


def preview(
    *,
    control: Control,
    config: Config,
    catalog: CatalogRow,
    store: CatalogStore,
    decoders: Decoders,
    item_id: str,
    route: str,
    describer: str = "",
    recipe: str = "",
) -> Preview:
    """Renders a prompt. Blocks: it reads the item's picture and the model's small files.

    Args:
        control: Where the recipe is looked up.
        config: Describers and their settings.
        catalog: The catalog; its domain and language stand in the prompt.
        store: Its tables.
        decoders: Decode the picture.
        item_id: The item.
        route: The route.
        describer: Its name; that of the recipe when empty, or the configured one where no recipe is given either.
        recipe: Name or id of a recipe.

    Raises:
        ServiceError: RECIPE_NOT_FOUND, DESCRIBER_UNAVAILABLE, NO_PROMPT, UNKNOWN_ROUTE, ITEM_NOT_FOUND,
            ROUTE_NOT_APPLICABLE, PICTURE_NOT_FOUND, PICTURE_UNREADABLE, …
    """
    asked = dict(control.recipes.resolve(catalog.name, recipe).description_recipes) if recipe else {}
    name = describer or _describer_of(control, asked, recipe) or config.enrichment.describer
    # The describer of imports is made from a recipe, but there is nothing to be asked of it.
    made = None if name == describers.IMPORT else describers.create(name, config.enrichment)
    if made is None or not isinstance(made, ShowsPrompts):
        raise ServiceError(
            "NO_PROMPT",
            f"the describer {name if made is None else made.name} works without prompts, so there is none to show; "
            f"name one that asks a model ({', '.join(describers.WITH_PROMPTS)})",
            describer=name if made is None else made.name,
        )
    routes.checked([route], made.routes)
    item = _item(store, item_id, route)
    picture = (
        _picture(store, decoders, made, item, max_pixels=config.limits.max_picture_pixels)
        if routes.needs_picture(route)
        else None
    )
    words = {"domain": catalog.domain, "language": catalog.language}
    made_recipe = recipes.described(made, route, **words)
    return Preview(
        describer=made.name,
        model=made.model,
        prompt_revision=str(made_recipe.spec.get("prompt_revision", "")),
        recipe_id=made_recipe.recipe_id,
        asked_recipe_id=asked.get(route, ""),
        turns=made.prompt(describing.request(item, route, picture, **words)),
        picture_size_px=None if picture is None else picture.size,
        picture_tokens=None if picture is None else made.picture_tokens(*picture.size),
    )


def _describer_of(control: Control, asked: dict[str, str], recipe: str) -> str:
    """The describer of a recipe; empty where no recipe was asked for."""
    for recipe_id in asked.values():
        return str(control.recipes.description(recipe_id).spec.get("describer", ""))
    if recipe:
        raise ServiceError(
            "NO_PROMPT",
            f"the recipe {recipe!r:.100} has no descriptions, so there is no prompt to show",
            recipe=recipe[:100],
        )
    return ""


def _item(store: CatalogStore, item_id: str, route: str) -> StoredItem:
    item = store.items.get([item_id]).get(item_id)
    if item is None:
        raise ServiceError("ITEM_NOT_FOUND", f"there is no item {item_id!r:.300}", item_id=item_id[:256])
    if routes.input_hash(item, route) is None:
        lacks = [
            what
            for what, lacking in (
                ("text in its attributes", routes.needs_text(route) and not routes.has_text(item)),
                ("picture", routes.needs_picture(route) and item.picture_sha256 is None),
            )
            if lacking
        ]
        raise ServiceError(
            "ROUTE_NOT_APPLICABLE",
            f"the route {route} does not apply to the item {item_id}: it has no {' and no '.join(lacks)}",
            item_id=item_id,
            route=route,
        )
    return item


def _picture(
    store: CatalogStore, decoders: Decoders, describer: Describer, item: StoredItem, *, max_pixels: int
) -> Image.Image:
    assert item.picture_sha256 is not None, "the route applies"
    stored = store.pictures.get(item.picture_sha256)
    if stored is None:
        raise ServiceError(
            "PICTURE_NOT_FOUND",
            f"the picture {item.picture_sha256} of the item {item.item_id} is not on the server; upload it again",
            sha256=item.picture_sha256,
        )
    try:
        return decoders.decode(stored.data, max_pixels=max_pixels, shrink_to_pixels=describer.picture_pixels)
    except DecodersUnavailableError as error:
        raise ServiceError("DESCRIBER_UNAVAILABLE", str(error)) from error
