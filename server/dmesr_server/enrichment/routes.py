"""The routes of the paper (§3.2.1): which apply to an item, and what each is made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

from dmesr_server.errors import ServiceError
from dmesr_server.store import StoredItem

from . import rendering

#: The item's own text (§3.3.1): encoded, never described.
ORIGINAL = "original"
TEXT = "text"
IMAGE = "image"
HYBRID = "hybrid"

#: Where text and picture support each other and where they differ: the prompt of the baseline X-REFLECT.
REFLECT = "reflect"

#: The routes that are described when a job names none, in the order in which they are listed.
ROUTES: tuple[str, ...] = (TEXT, IMAGE, HYBRID)

_NEEDS_TEXT = frozenset({TEXT, HYBRID, REFLECT})
_NEEDS_PICTURE = frozenset({IMAGE, HYBRID, REFLECT})


def needs_text(route: str) -> bool:
    """Whether a route reads the attributes."""
    return route in _NEEDS_TEXT


def needs_picture(route: str) -> bool:
    """Whether a route reads the picture."""
    return route in _NEEDS_PICTURE


def has_text(item: StoredItem) -> bool:
    """Whether the attributes say anything."""
    return bool(rendering.original_text(item.attributes))


def input_hash(item: StoredItem, route: str) -> str | None:
    """Hash of all that a route's description of the item is made from.

    Returns:
        None where the route does not apply: there is no text, or no picture. What is missing is absent, never invented.
    """
    parts: dict[str, str] = {}
    if needs_text(route):
        if not has_text(item):
            return None
        parts["attributes"] = item.attributes_hash
    if needs_picture(route):
        if item.picture_sha256 is None:
            return None
        parts["picture"] = item.picture_sha256
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def original_hash(item: StoredItem) -> str | None:
    """Hash behind the vector of the original text; None where there is no text."""
    return item.attributes_hash if has_text(item) else None


def text_hash(text: str) -> str:
    """Hash behind the vector of a description: its text, so that the same text is never encoded again."""
    return hashlib.sha256(text.encode()).hexdigest()


def is_stale(item: StoredItem, route: str, made_from: str) -> bool:
    """Whether the item has changed since a description was made.

    Args:
        item: The item as it is now.
        route: The description's route.
        made_from: The description's `input_hash`; empty for one imported where the route does not apply.
    """
    return (input_hash(item, route) or "") != made_from


def ordered(found: Iterable[str]) -> list[str]:
    """Routes in the order in which they are listed: the paper's, then others by name."""
    place = {route: number for number, route in enumerate(ROUTES)}
    return sorted(found, key=lambda route: (place.get(route, len(place)), route))


def checked(routes: Sequence[str], known: Sequence[str] = ROUTES) -> tuple[str, ...]:
    """The routes asked for, each once, in the usual order; the paper's, as far as known, when none is asked for.

    Raises:
        ServiceError: UNKNOWN_ROUTE.
    """
    for route in routes:
        if route not in known:
            raise ServiceError(
                "UNKNOWN_ROUTE",
                f"there is no route {route!r:.100}; choose from {', '.join(known)}"
                + (" (the original text is always encoded)" if route == ORIGINAL else ""),
                route=route[:100],
                known=", ".join(known),
            )
    wanted = routes or ROUTES
    return tuple(route for route in known if route in wanted)
