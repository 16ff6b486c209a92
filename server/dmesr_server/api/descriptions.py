"""Descriptions as the API reads, lists and corrects them, their prompts and their figures. All of it blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dmesr.v1 import enrichment_pb2 as pb

from dmesr_server.api import job_translation, translation, validation
from dmesr_server.api.parts import Parts
from dmesr_server.control import RecipeRow
from dmesr_server.enrichment import corrections, previewing, rendering, routes, statistics
from dmesr_server.enrichment.corrections import Standing
from dmesr_server.enrichment.statistics import RouteTally
from dmesr_server.errors import invalid_field
from dmesr_server.store import CatalogStore, StoredItem

_MESSAGE_ROOM = 64 * 1024  # for the rest of the message


def get(parts: Parts, request: pb.GetDescriptionsRequest) -> pb.GetDescriptionsResponse:
    """The descriptions of the items that the request names."""
    recipe, catalog = _recipe(parts, request.catalog, request.recipe)
    validation.at_most("item_ids", len(request.item_ids), validation.MAX_DESCRIBED_ITEMS, "of GetDescriptions")
    ids = validation.distinct(validation.ids("item_ids", request.item_ids, parts.config.limits))
    items = catalog.items.get(ids)
    described = corrections.read(catalog.descriptions, list(items), recipe.description_recipes.values())
    return pb.GetDescriptionsResponse(
        descriptions=[
            wire for item_id in ids if item_id in items for wire in _of_item(items[item_id], described.get(item_id, {}))
        ],
        original_texts={
            item_id: text for item_id, item in items.items() if (text := rendering.original_text(item.attributes))
        },
        missing_item_ids=[item_id for item_id in ids if item_id not in items],
    )


def page(parts: Parts, request: pb.ListDescriptionsRequest) -> pb.ListDescriptionsResponse:
    """A page of a recipe's descriptions: those of as many items as are asked for and as fit into a message."""
    recipe, catalog = _recipe(parts, request.catalog, request.recipe)
    size = validation.page_size(request.page_size)
    scope = [recipe.catalog, recipe.recipe_id, str(request.include_failures)]
    after = validation.decode_page_token("ListDescriptions", scope, request.page_token)
    items = catalog.items.page(after, size + 1)  # one more tells whether there is a next page
    wanted = items[:size]
    described = corrections.read(
        catalog.descriptions, [item.item_id for item in wanted], recipe.description_recipes.values()
    )
    response = pb.ListDescriptionsResponse(recipe_id=recipe.recipe_id)
    room = parts.config.limits.max_message_bytes - _MESSAGE_ROOM
    last = ""
    for item in wanted:
        found = [
            wire
            for wire in _of_item(item, described.get(item.item_id, {}))
            if request.include_failures or not wire.HasField("problem")
        ]
        room -= sum(wire.ByteSize() + 8 for wire in found)
        if room < 0 and last:
            break
        response.descriptions.extend(found)
        last = item.item_id
    if items and last != items[-1].item_id:
        response.next_page_token = validation.encode_page_token("ListDescriptions", scope, last)
    return response


def edit(parts: Parts, request: pb.EditDescriptionRequest) -> pb.EditDescriptionResponse:
    """Corrects a description or withdraws a correction."""
    validation.required(item_id=request.item_id, route=request.route)
    recipe, catalog = _recipe(parts, request.catalog, request.recipe)
    change = request.WhichOneof("change")
    if change == "text":
        validation.required(author=request.author)
        standing: Standing | None = corrections.edit(
            store=catalog,
            recipe=recipe,
            item_id=request.item_id,
            route=request.route,
            text=request.text,
            author=validation.short_text("author", request.author),
        )
    elif change == "withdraw" and request.withdraw:
        standing = corrections.withdraw(store=catalog, recipe=recipe, item_id=request.item_id, route=request.route)
    else:
        raise invalid_field("change", "give a text that is to stand, or withdraw")
    item = catalog.items.get([request.item_id]).get(request.item_id)
    if standing is None or item is None:
        return pb.EditDescriptionResponse()
    return pb.EditDescriptionResponse(description=job_translation.standing(standing, item))


def preview(parts: Parts, request: pb.PreviewPromptRequest) -> pb.PreviewPromptResponse:
    """The prompt of one item and route."""
    validation.required(item_id=request.item_id, route=request.route)
    row, catalog = parts.catalog(request.catalog)
    shown = previewing.preview(
        decoders=parts.decoders,
        control=parts.control,
        config=parts.config,
        catalog=row,
        store=catalog,
        item_id=request.item_id,
        route=request.route,
        describer=request.describer,
        recipe=request.recipe,
    )
    width_px, height_px = shown.picture_size_px or (0, 0)
    return pb.PreviewPromptResponse(
        describer=shown.describer,
        model=shown.model,
        prompt_revision=shown.prompt_revision,
        description_recipe_id=shown.recipe_id,
        turns=[
            pb.PromptTurn(
                role=turn.role,
                text=turn.text,
                has_picture=turn.has_picture,
                round=turn.round,
                is_placeholder=turn.is_placeholder,
            )
            for turn in shown.turns
        ],
        picture_width_px=width_px,
        picture_height_px=height_px,
        picture_tokens=shown.picture_tokens,
        asked_description_recipe_id=shown.asked_recipe_id,
    )


def stats(parts: Parts, request: pb.GetEnrichmentStatsRequest) -> pb.GetEnrichmentStatsResponse:
    """The figures of a recipe's descriptions."""
    recipe, catalog = _recipe(parts, request.catalog, request.recipe)
    found = statistics.gather(control=parts.control, store=catalog, recipe=recipe)
    return pb.GetEnrichmentStatsResponse(
        recipe_id=recipe.recipe_id,
        items=found.items,
        routes=[_route_stats(tally, found.side_by_side) for tally in found.routes],
    )


def _recipe(parts: Parts, catalog_name: str, name_or_id: str) -> tuple[RecipeRow, CatalogStore]:
    row, catalog = parts.catalog(catalog_name)
    return parts.control.recipes.resolve(row.name, validation.recipe_ref(name_or_id)), catalog


def _of_item(item: StoredItem, standing: Mapping[str, Standing]) -> Iterator[pb.Description]:
    for route in routes.ordered(standing):
        yield job_translation.standing(standing[route], item)


def _route_stats(tally: RouteTally, side_by_side: float) -> pb.RouteStats:
    wire = pb.RouteStats(
        route=tally.route,
        description_recipe_id=tally.recipe_id,
        applicable=tally.applicable,
        described=tally.described,
        stale=tally.stale,
        corrected=tally.corrected,
        failures=[
            pb.FailureCount(reason=translation.reason_number(reason), count=count)
            for reason, count in tally.failures.most_common()
        ],
        mean_words=tally.words / tally.described if tally.described else 0.0,
        tokens_in=tally.tokens_in,
        tokens_out=tally.tokens_out,
        tokens_cached=tally.tokens_cached,
        milliseconds=tally.milliseconds,
        stop_reasons=tally.stop_reasons,
    )
    if tally.tokens_out and tally.milliseconds:
        wire.tokens_per_second = 1e3 * tally.tokens_out / tally.milliseconds * side_by_side
    refinement = tally.refinement
    if refinement.refined:
        wire.refinement.CopyFrom(
            pb.RefinementStats(
                refined=refinement.refined,
                mean_rounds=refinement.rounds / refinement.refined,
                gain=refinement.gain,
                new_words_by_round=[words / texts for texts, words in refinement.new_words if texts],
            )
        )
    return wire
