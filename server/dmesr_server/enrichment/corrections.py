"""What a person wrote in the place of a description.

A correction belongs to an item, a route and a description recipe. It is a row of its own beside the describer's, so
that no job can overwrite it and a withdrawal brings back what the describer had made. Jobs describe nothing that is
corrected, and encode the correction; it stays when the item changes, and is told to be stale then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dmesr_server.control import RecipeRow
from dmesr_server.errors import ServiceError, invalid_field
from dmesr_server.store import CatalogStore, DescriptionRow, DescriptionTable

from . import provenance, routes

MAX_TEXT_BYTES = 64 * 1024
# Before the id of the description recipe that a correction belongs to. No recipe's own id holds a colon.
_OF = "person:"


@dataclass(frozen=True)
class Standing:
    """The description of an item by a route that stands.

    Attributes:
        row: The correction where there is one, otherwise what the describer made.
        replaced: What the describer made, where a correction stands in its place.
    """

    row: DescriptionRow
    replaced: DescriptionRow | None = None

    @property
    def is_corrected(self) -> bool:
        """Whether a person wrote it."""
        return is_correction(self.row)


def is_correction(row: DescriptionRow) -> bool:
    """Whether a row is a person's."""
    return row.recipe_id.startswith(_OF)


def description_recipe_id(row: DescriptionRow) -> str:
    """The description recipe that a row belongs to, be it a correction or not."""
    return row.recipe_id.removeprefix(_OF)


def read(table: DescriptionTable, item_ids: Sequence[str], recipe_ids: Iterable[str]) -> dict[str, dict[str, Standing]]:
    """What stands for these items by these description recipes: by item, then by route. Blocks."""
    wanted = list(recipe_ids)
    found: dict[str, dict[str, Standing]] = {}
    for row in table.get(item_ids, [*wanted, *(f"{_OF}{recipe_id}" for recipe_id in wanted)]):
        of_item = found.setdefault(row.item_id, {})
        other = of_item.get(row.route)
        if other is None:
            of_item[row.route] = Standing(row)
        elif is_correction(row):
            of_item[row.route] = Standing(row, replaced=other.row)
        else:
            of_item[row.route] = Standing(other.row, replaced=row)
    return found


def edit(*, store: CatalogStore, recipe: RecipeRow, item_id: str, route: str, text: str, author: str) -> Standing:
    """Puts a text in the place of a description, there or not. The same text for the same item changes nothing. Blocks.

    Args:
        store: The catalog's tables.
        recipe: The recipe whose description it corrects.
        item_id: The item.
        route: The route.
        text: What is to stand.
        author: Who wrote it.

    Raises:
        ServiceError: ITEM_NOT_FOUND, UNKNOWN_ROUTE, INVALID_FIELD, STORE_FULL or STORE_UNAVAILABLE.
    """
    described_by = _description_recipe(recipe, route)
    said = text.strip()
    size = len(text.encode())
    if not said or size > MAX_TEXT_BYTES:
        what = f"has {size} bytes of UTF-8, at most {MAX_TEXT_BYTES} are allowed; shorten it" if said else "is empty"
        raise invalid_field("text", what if said else f"{what}; give the text that is to stand, or withdraw")
    if not author:
        raise invalid_field("author", "must name who writes the correction")
    item = store.items.get([item_id]).get(item_id)
    if item is None:
        raise _no_item(item_id)
    before = read(store.descriptions, [item_id], [described_by]).get(item_id, {}).get(route)
    made_from = routes.input_hash(item, route) or ""
    if before is not None and before.is_corrected and (before.row.text, before.row.input_hash) == (said, made_from):
        return before
    row = DescriptionRow(
        item_id=item_id,
        route=route,
        recipe_id=f"{_OF}{described_by}",
        input_hash=made_from,
        text=said,
        provenance=provenance.corrected(route, item=item, author=author),
    )
    store.descriptions.upsert([row])
    # A delete takes descriptions first and the item last: one that overtook this write has left it behind.
    if item_id not in store.items.existing([item_id]):
        store.descriptions.delete([item_id])
        raise _no_item(item_id)
    replaced = None if before is None else before.replaced if before.is_corrected else before.row
    return Standing(row, replaced=replaced)


def withdraw(*, store: CatalogStore, recipe: RecipeRow, item_id: str, route: str) -> Standing | None:
    """Takes a correction back. Blocks.

    Returns:
        What the describer had made; None where it has made nothing.

    Raises:
        ServiceError: CORRECTION_NOT_FOUND, UNKNOWN_ROUTE, STORE_FULL or STORE_UNAVAILABLE.
    """
    described_by = _description_recipe(recipe, route)
    before = read(store.descriptions, [item_id], [described_by]).get(item_id, {}).get(route)
    if before is None or not before.is_corrected:
        raise ServiceError(
            "CORRECTION_NOT_FOUND",
            f"nobody has corrected the {route} description of the item {item_id!r:.300} by the recipe "
            f"{recipe.recipe_id}: there is nothing to withdraw",
            item_id=item_id[:256],
            route=route,
            recipe=recipe.recipe_id,
        )
    store.descriptions.delete_rows([before.row])
    return None if before.replaced is None else Standing(before.replaced)


def _description_recipe(recipe: RecipeRow, route: str) -> str:
    routes.checked([route], tuple(recipe.description_recipes))
    return recipe.description_recipes[route]


def _no_item(item_id: str) -> ServiceError:
    return ServiceError(
        "ITEM_NOT_FOUND", f"there is no item {item_id!r:.300}; import the item first", item_id=item_id[:256]
    )
