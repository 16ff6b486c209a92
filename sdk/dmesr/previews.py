"""Previews: the prompt of an item as its describer would send it."""

from __future__ import annotations

from dataclasses import dataclass

from dmesr.arguments import one_id
from dmesr.transport import Rpc, Transport
from dmesr.v1 import enrichment_pb2

PREVIEW = Rpc(
    "EnrichmentService/PreviewPrompt",
    enrichment_pb2.PreviewPromptRequest,
    enrichment_pb2.PreviewPromptResponse,
    idempotent=True,
)


@dataclass(frozen=True)
class PromptTurn:
    """One turn of a prompt."""

    role: str  # "system", "user" or "assistant"
    text: str  # filled in for the item
    has_picture: bool  # the picture is shown before the text
    round: int  # of refinement; 0 for the turns that ask for the description itself
    is_placeholder: bool  # the text only says what the model has yet to write


@dataclass(frozen=True)
class PromptPreview:
    """A prompt as it would be sent."""

    describer: str
    model: str  # with its revision
    prompt_revision: str
    description_recipe_id: str  # that the describer makes now
    asked_description_recipe_id: str | None  # of the recipe that was asked for; other settings when they differ
    turns: tuple[PromptTurn, ...]
    picture_width_px: int  # as sent; 0 where no picture is
    picture_height_px: int
    picture_tokens: int | None  # None where nobody can tell without the model


async def read_preview(
    transport: Transport, catalog: str, item_id: str, *, route: str, recipe: str | None, describer: str | None
) -> PromptPreview:
    """Reads the prompt of one item and route."""
    answer = await transport.unary(
        PREVIEW,
        enrichment_pb2.PreviewPromptRequest(
            catalog=catalog,
            item_id=one_id(item_id, name="item_id"),
            route=one_id(route, name="route"),
            recipe=recipe or "",
            describer=describer or "",
        ),
    )
    return PromptPreview(
        describer=answer.describer,
        model=answer.model,
        prompt_revision=answer.prompt_revision,
        description_recipe_id=answer.description_recipe_id,
        asked_description_recipe_id=answer.asked_description_recipe_id or None,
        turns=tuple(
            PromptTurn(one.role, one.text, one.has_picture, one.round, one.is_placeholder) for one in answer.turns
        ),
        picture_width_px=answer.picture_width_px,
        picture_height_px=answer.picture_height_px,
        picture_tokens=answer.picture_tokens if answer.HasField("picture_tokens") else None,
    )
