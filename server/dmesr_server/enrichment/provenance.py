"""How a description came to be, as it is kept beside the text: the fields of the wire's `Provenance`, and the job."""

from __future__ import annotations

import json
from typing import Any

from dmesr_server.store import StoredItem

from .describers import Describer, DescriptionResult
from .recipes import DescriptionRecipe
from .routes import input_hash, needs_picture

#: The describer of a correction.
PERSON = "person"


def made(
    describer: Describer, recipe: DescriptionRecipe, *, item: StoredItem, result: DescriptionResult | None, job_id: str
) -> dict[str, Any]:
    """Of a description that a job made, or (result None) tried to make."""
    fields = _common(describer, recipe, item=item) | {"job_id": job_id}
    if result is None:
        return fields
    return fields | {
        "rounds": result.rounds,
        "stop_reason": result.stop_reason,
        "tokens_in": result.tokens_in,
        "tokens_out": result.tokens_out,
        "tokens_cached": result.tokens_cached,
        "milliseconds": round(result.milliseconds, 3),
        "sampling": json.dumps(dict(result.sampling), sort_keys=True, separators=(",", ":")) if result.sampling else "",
    }


def imported(describer: Describer, recipe: DescriptionRecipe, *, item: StoredItem, author: str = "") -> dict[str, Any]:
    """Of a description that was made elsewhere."""
    return _common(describer, recipe, item=item) | ({"author": author} if author else {})


def corrected(route: str, *, item: StoredItem, author: str) -> dict[str, Any]:
    """Of what a person wrote in the place of a description."""
    return {"describer": PERSON, "is_mllm": False, "author": author, **_content(route, item=item)}


def _common(describer: Describer, recipe: DescriptionRecipe, *, item: StoredItem) -> dict[str, Any]:
    return {
        "describer": describer.name,
        "is_mllm": describer.is_mllm,
        "model": describer.model,
        "engine": describer.engine,
        "prompt_revision": recipe.spec.get("prompt_revision", ""),
        **_content(recipe.route, item=item),
    }


def _content(route: str, *, item: StoredItem) -> dict[str, Any]:
    picture = item.picture_sha256 if needs_picture(route) else None
    return {"content_hash": input_hash(item, route) or "", "picture_sha256": picture or ""}
