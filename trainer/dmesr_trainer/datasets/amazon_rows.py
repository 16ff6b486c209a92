"""What the lines of Amazon's three releases say: 2014, 2018 and 2023 differ in names and in kinds.

What would tell an item's popularity, or what people did after the event that is held out, stays out: sales ranks,
average stars, numbers of ratings, and what else was bought or viewed.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dmesr_trainer.datasets.events import Event
from dmesr_trainer.datasets.lines import UnusableLineError, text

MILLISECONDS = 1_000  # of Event.time here

_TAG = re.compile(r"<[^<>]*>")
_SPACES = re.compile(r"\s+")
# Some pages of 2018 were cut out wrongly: their fields hold the page's program.
_PAGE_PROGRAM = re.compile(r"getTime\(|function ?\(|\.aplus|\bvar \w+ ?=")
_PRICE = re.compile(r"\$?\d[\d,]*(\.\d+)?( ?- ?\$?\d[\d,]*(\.\d+)?)?")
_DETAILS_LEFT_OUT = re.compile(
    r"rank|review|rating|asin|upc|isbn|(model|part) number|dimensions|weight|discontinued|first available|batteries",
    re.IGNORECASE,
)
_LONGEST_TEXT = 4_000  # characters
_MOST_VALUES = 20  # of one attribute


def event(row: Mapping[str, Any]) -> Event:
    """A review's user, item and time.

    Raises:
        UnusableLineError: One of them is missing or of another kind.
    """
    if "reviewerID" in row:  # 2014 and 2018
        user, item, when = row["reviewerID"], row.get("asin"), row.get("unixReviewTime")
        names, scale = ("reviewerID", "asin", "unixReviewTime"), MILLISECONDS
    else:  # 2023, where colours and sizes of one product share a parent
        user, item, when = row.get("user_id"), row.get("parent_asin") or row.get("asin"), row.get("timestamp")
        names, scale = ("user_id", "parent_asin", "timestamp"), 1
    for name, value in zip(names, (user, item), strict=False):
        if not text(value):
            raise UnusableLineError(f"{name} is {value!r:.60}; expected text")
    if isinstance(when, bool) or not isinstance(when, int) or when < 0:
        raise UnusableLineError(f"{names[2]} is {when!r:.60}; expected whole numbers since 1970")
    return Event(text(user), text(item), when * scale)


@dataclass(frozen=True)
class Product:
    """A product's id, and its line."""

    item_id: str
    row: Mapping[str, Any]


def product(row: Mapping[str, Any]) -> Product:
    """A line of the metadata.

    Raises:
        UnusableLineError: It has no id.
    """
    found = text(row.get("parent_asin")) or text(row.get("asin"))
    if not found:
        raise UnusableLineError("it has neither asin nor parent_asin")
    return Product(found, row)


def attributes(row: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """What a product's line says about it, in the order in which prompts tell it."""
    found: dict[str, str | list[str]] = {
        "title": " ".join(_texts(row.get("title"))),
        "brand": " ".join(_texts(row.get("brand")) or _texts(row.get("store"))).removeprefix("by ").strip(),
        "categories": _texts(row.get("categories") or row.get("category")),
        "features": _texts(row.get("features") or row.get("feature")),
        "description": " ".join(_texts(row.get("description")))[:_LONGEST_TEXT],
        "price": _price(row.get("price")),
    }
    details = row.get("details")
    for name, value in details.items() if isinstance(details, Mapping) else ():
        key = " ".join(_texts(name)).rstrip(":").lower()
        if key and key not in found and not _DETAILS_LEFT_OUT.search(key) and (texts := _texts(value)):
            found[key] = texts[0] if len(texts) == 1 else texts
    return {name: value for name, value in found.items() if value}


def picture_url(row: Mapping[str, Any]) -> str | None:
    """Where the largest version of a product's first picture is."""
    images = row.get("images")
    if isinstance(images, Mapping):  # columns, as the 2023 release's Parquet files have them
        columns = [images.get(size) or () for size in ("hi_res", "large")]
        candidates: list[object] = [url for urls in zip(*columns, strict=False) for url in urls]
    elif isinstance(images, list):  # 2023
        ordered = sorted(
            (image for image in images if isinstance(image, Mapping)), key=lambda image: image.get("variant") != "MAIN"
        )
        candidates = [image.get(size) for image in ordered for size in ("hi_res", "large", "thumb")]
    else:
        candidates = [
            *_listed(row.get("imageURLHighRes")),
            *_listed(row.get("imageURL")),
            *_listed(row.get("imUrl")),
        ]
    return next((text(url) for url in candidates if text(url).startswith(("http://", "https://"))), None)


def _listed(value: object) -> Iterable[object]:
    return value if isinstance(value, list) else (value,)


def _texts(value: object) -> list[str]:
    """The texts within a value, however deep its lists are, without mark-up and repeats."""
    if isinstance(value, list):
        found = [one for element in value for one in _texts(element)]
        return list(dict.fromkeys(found))[:_MOST_VALUES]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [str(value)]
    plain = text(value)
    if not plain or _PAGE_PROGRAM.search(plain):
        return []
    plain = _SPACES.sub(" ", _TAG.sub(" ", html.unescape(plain))).strip()
    return [plain[:_LONGEST_TEXT]] if plain else []


def _price(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return f"${value:.2f}"
    plain = text(value)
    return plain if _PRICE.fullmatch(plain) else ""
