"""What the lines of the Yelp Open Dataset say.

Stars, numbers of reviews and whether a place is still open stay out of what is told about it: they tell its popularity,
and what happened after the event that is held out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from dmesr_trainer.datasets.events import Event
from dmesr_trainer.datasets.lines import UnusableLineError, text

RESTAURANTS = "Restaurants"
#: Of a business' photos the best one is told by what it shows, in this order, then by whether it has a caption.
PHOTO_LABELS = ("food", "inside", "outside", "drink", "menu")

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_PRICES = {"1": "inexpensive", "2": "moderate", "3": "pricey", "4": "high-end"}


def event(row: Mapping[str, Any]) -> Event:
    """A review's user, business and time.

    Raises:
        UnusableLineError: One of them is missing or of another kind.
    """
    user, business = text(row.get("user_id")), text(row.get("business_id"))
    if not user or not business:
        name = "business_id" if user else "user_id"
        raise UnusableLineError(f"{name} is {row.get(name)!r:.60}; expected text")
    when = text(row.get("date"))
    try:
        moment = datetime.fromisoformat(when)  # "2018-07-07 22:09:11"; a day alone in old releases
    except ValueError as error:
        raise UnusableLineError(f"date is {row.get('date')!r:.60}; expected YYYY-MM-DD HH:MM:SS") from error
    return Event(user, business, int(moment.replace(tzinfo=UTC).timestamp()))


@dataclass(frozen=True)
class Business:
    """A business' id, and its line."""

    business_id: str
    row: Mapping[str, Any]


def business(row: Mapping[str, Any]) -> Business:
    """A line of the businesses.

    Raises:
        UnusableLineError: It has no id.
    """
    found = text(row.get("business_id"))
    if not found:
        raise UnusableLineError(f"business_id is {row.get('business_id')!r:.60}; expected text")
    return Business(found, row)


def categories(row: Mapping[str, Any]) -> list[str]:
    """A business' categories: text with commas, or a list in old releases."""
    value = row.get("categories")
    parts = value if isinstance(value, list) else text(value).split(",")
    return [text(part) for part in parts if text(part)]


def attributes(row: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """What a business' line says about it, in the order in which prompts tell it."""
    found: dict[str, str | list[str]] = {
        "name": text(row.get("name")),
        "categories": [category for category in categories(row) if category != RESTAURANTS],
        "city": text(row.get("city")),
        "state": text(row.get("state")),
    }
    offers = []
    given = row.get("attributes")
    for name, value in given.items() if isinstance(given, Mapping) else ():
        key, known = _words(name), _known(value)
        if name == "RestaurantsPriceRange2":
            found["price range"] = _PRICES.get(str(known), "")
        elif known is True:
            offers.append(key)
        elif isinstance(known, Mapping):
            found[key] = [_words(one) for one, yes in known.items() if yes is True]
        elif isinstance(known, str) and known.lower() not in ("none", "no", ""):
            found[key] = known.replace("_", " ")
    found["offers"] = offers
    return {name: value for name, value in found.items() if value}


class Photo(NamedTuple):
    """A photo of a business. In order: the best one of a business is the smallest."""

    place: int  # of its label in `PHOTO_LABELS`; any other comes last
    no_caption: bool
    photo_id: str
    business_id: str


def photo(row: Mapping[str, Any]) -> Photo:
    """A line of the photos.

    Raises:
        UnusableLineError: It does not say which photo shows which business.
    """
    photo_id, business_id, label = text(row.get("photo_id")), text(row.get("business_id")), text(row.get("label"))
    if not business_id or not re.fullmatch(r"[\w-]+", photo_id):
        raise UnusableLineError("it lacks a photo_id, which names the file, or a business_id")
    place = PHOTO_LABELS.index(label) if label in PHOTO_LABELS else len(PHOTO_LABELS)
    return Photo(place, not text(row.get("caption")), photo_id, business_id)


def _known(value: object) -> object:
    """A value that the release writes as Python: "True", "u'full_bar'", "{'romantic': False}"."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text(value)


def _words(name: object) -> str:
    """Names as people write them: RestaurantsGoodForGroups is "good for groups"."""
    plain = text(name).removeprefix("Restaurants")
    return " ".join(word.lower() for word in _WORDS.findall(plain) if not word.isdigit())
