"""Puts an item's attributes into fluent sentences, by what their names say about their part in the sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

Attributes = Sequence[tuple[str, Sequence[str]]]

# Names (lower case, spaces for underscores, singular) by the part that they play.
_TITLE = frozenset({"title", "name", "product", "product name", "headline"})
_KIND = frozenset({"genre", "category", "kind", "type", "cuisine", "style"})
_PROSE = frozenset({"plot", "description", "summary", "overview", "synopsis", "about", "feature", "text", "review"})
# What stands between the sentence and the values, in the order in which a sentence takes them.
_PHRASES = {
    "year": "from",
    "release year": "from",
    "release date": "released on",
    "country": "made in",
    "city": "in",
    "location": "in",
    "neighbourhood": "in",
    "director": "directed by",
    "actor": "starring",
    "cast": "starring",
    "star": "starring",
    "author": "written by",
    "writer": "written by",
    "screenwriter": "written by",
    "artist": "by",
    "composer": "with music by",
    "developer": "developed by",
    "studio": "by",
    "brand": "by",
    "manufacturer": "made by",
    "publisher": "published by",
    "platform": "for",
    "material": "made of",
    "colour": "in",
    "color": "in",
    "language": "in",
    "theme": "about",
    "topic": "about",
    "subject": "about",
    "keyword": "about",
    "tag": "tagged",
    "mood": "in a mood that is",
    "setting": "set in",
}
_NOTHING = frozenset({"n/a", "na", "none", "null", "nan", "unknown", "(no genres listed)", "not available"})
_LIST = re.compile(r"\s*[|;]\s*")


@dataclass(frozen=True)
class AttributeSentences:
    """An item's attributes, sorted by the part that they play.

    Attributes:
        title: What it is called; empty when no attribute says so.
        kinds: Its kinds, lower case, for instance ("adventure", "comedy").
        phrases: What follows the kind, for instance "directed by John Lasseter".
        prose: Sentences of its own, for instance the plot.
        others: All else, for instance "runtime: 81 min".
    """

    title: str
    kinds: tuple[str, ...]
    phrases: tuple[str, ...]
    prose: tuple[str, ...]
    others: tuple[str, ...]

    def introduction(self, domain: str, *, look: str = "") -> str:
        """What the item is, as one sentence: title, kinds, and the phrases.

        Args:
            domain: What the catalog holds, for instance "film".
            look: How it looks, to follow the kind: "with a sunny look".
        """
        what = f"{joined(self.kinds)} {domain}" if self.kinds else domain
        clauses = "".join(f", {phrase}" for phrase in self.phrases)
        rest = f"{article(what)} {what}{look and f' {look}'}{clauses}."
        return f"{self.title} is {rest}" if self.title else f"{rest[:1].upper()}{rest[1:]}"


def read(attributes: Attributes) -> AttributeSentences:
    """Sorts attributes by the part that they play; values that say nothing ("n/a", "unknown") are left out."""
    title, kinds, prose, others = "", [], [], []
    phrases: dict[str, str] = {}
    for name, raw in attributes:
        values = [value for value in (" ".join(one.split()) for one in raw) if _says_something(value)]
        if not values:
            continue
        said = " ".join(name.replace("_", " ").replace("-", " ").lower().split())
        role = _singular(said)
        if role in _TITLE and not title:
            title = values[0].rstrip(".")
        elif role in _KIND:
            kinds += [part.lower() for value in values for part in _LIST.split(value) if _says_something(part)]
        elif role in _PROSE:
            prose += [value if value[-1] in ".!?…\"'" else f"{value}." for value in values]
        elif role in _PHRASES and role not in phrases:
            phrases[role] = f"{_PHRASES[role]} {joined(values)}"
        else:
            others.append(f"{said}: {', '.join(values)}")
    return AttributeSentences(
        title=title,
        kinds=tuple(dict.fromkeys(kinds)),
        phrases=tuple(phrases[role] for role in _PHRASES if role in phrases),
        prose=tuple(prose),
        others=tuple(others),
    )


def joined(words: Sequence[str]) -> str:
    """Words as a list in a sentence: "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def article(word: str) -> str:
    """The article "a" or "an", by the word's first letter."""
    return "an" if word[:1].lower() in "aeiou" else "a"


def shortened(text: str, *, characters: int) -> str:
    """The text cut after a whole word, with an ellipsis, where it is longer."""
    if len(text) <= characters:
        return text
    return text[: characters - 1].rsplit(" ", 1)[0].rstrip(" ,;:.") + "…"


def _says_something(value: str) -> bool:
    return value.lower() not in _NOTHING and any(character.isalnum() for character in value)


def _singular(name: str) -> str:
    if name.endswith("ies"):
        return f"{name[:-3]}y"
    return name[:-1] if name.endswith("s") and not name.endswith("ss") else name
