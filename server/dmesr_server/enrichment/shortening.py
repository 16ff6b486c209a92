"""Shortens an item's attributes until its prompt fits the model's context.

The rule: the longest values are cut first, all to the same length, after a whole word; short values stay whole. Only
when every value is down to its least length are attributes left out, the last ones first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import rendering

#: Raise it with every change of the rule.
SHORTENING_REVISION = "longest-first-1"

_LEAST_CHARACTERS = 40
_ELLIPSIS = "…"

Attributes = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Shortened:
    """Attributes that were cut.

    Attributes:
        attributes: What is left.
        characters: Length of the rendered text.
        cut: Names of attributes that lost something or all.
    """

    attributes: Attributes
    characters: int
    cut: tuple[str, ...]

    def record(self, *, characters_before: int) -> Mapping[str, object]:
        """For the provenance."""
        return {
            "rule": SHORTENING_REVISION,
            "characters": [characters_before, self.characters],
            "cut": list(self.cut),
        }


def shortened(attributes: Attributes, *, characters: int) -> Shortened:
    """Cuts attributes so that their rendered text has at most so many characters.

    Args:
        attributes: Names and values, whole.
        characters: The most that may be left; 0 leaves nothing.
    """
    longest = max((len(value) for _, values in attributes for value in values), default=0)
    low, high = _LEAST_CHARACTERS, max(longest, _LEAST_CHARACTERS)
    if _length(_limited(attributes, low)) <= characters:
        while low < high:  # the largest limit that fits
            middle = (low + high + 1) // 2
            if _length(_limited(attributes, middle)) <= characters:
                low = middle
            else:
                high = middle - 1
        return _outcome(attributes, _limited(attributes, low))
    left = _limited(attributes, low)
    while left and _length(left) > characters:
        left = left[:-1]
    return _outcome(attributes, left)


def _limited(attributes: Attributes, limit: int) -> Attributes:
    return tuple((name, tuple(_cut(value, limit) for value in values)) for name, values in attributes)


def _cut(value: str, limit: int) -> str:
    if len(value) <= limit:
        return value
    kept = value[: limit - 1]
    words = kept.rsplit(" ", 1)[0]
    # A script without spaces, or one endless word, is cut where it is.
    return (words if len(words) >= limit // 2 else kept).rstrip(" ,;:.") + _ELLIPSIS


def _outcome(before: Attributes, after: Attributes) -> Shortened:
    left: dict[str, Sequence[str]] = dict(after)
    cut = tuple(name for name, values in before if left.get(name) != values)
    return Shortened(after, _length(after), cut)


def _length(attributes: Attributes) -> int:
    return len(rendering.original_text(attributes))
