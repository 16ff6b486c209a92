"""Holds an item's words against its picture's measures: where both say the same, and where they differ.

The mechanical counterpart of X-REFLECT's question to an MLLM (Lyu et al. 2024). It understands neither text nor
picture: it looks single words up in lists of what they make people expect to see.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .attributes import Attributes, joined
from .colours import FAMILY_OF
from .layout import Measures

_MOST_WORDS = 5  # of one expectation in a sentence
# A colour family that covers less than the first is not there, one that covers the second is.
_ABSENT_SHARE, _PRESENT_SHARE = 0.02, 0.08
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")

# What a word makes people expect, by axis and direction. Part of the description recipe (`palette.REFLECT_REVISION`).
_EXPECTED = {
    ("light", -1): """
        dark darkness night midnight noir horror thriller crime murder killer ghost haunted shadow death dead evil
        vampire demon mystery prison underworld gothic funeral nightmare cave abyss war
        """,
    ("light", 1): """
        bright light sun sunny sunshine day morning summer beach comedy family children child kid baby wedding musical
        holiday paradise heaven angel joy happy smile spring picnic
        """,
    ("warmth", -1): """
        ice icy winter snow arctic frozen cold sea ocean water underwater river rain space moon star alien sci-fi
        robot cyber blue mountain storm steel
        """,
    ("warmth", 1): """
        fire flame burning desert sun summer autumn fall love romance passion blood western cowboy gold golden spice
        sand volcano hell heat wood wooden amber lion
        """,
    ("colour", -1): """
        documentary noir war black-and-white grey gray ash winter fog office minimal plain silent classic business
        depression poverty
        """,
    ("colour", 1): """
        animation animated musical fantasy carnival children magic magical circus rainbow party candy toy game fairy
        tropical festival pop neon garden flower superhero
        """,
    ("detail", -1): """
        silence silent alone lonely solitude minimal empty calm peace quiet simple single plain basic meditation
        """,
    ("detail", 1): """
        action battle crowd city army war adventure chase epic kingdom market jungle festival rebellion riot explosion
        collection assorted
        """,
}
_SUGGESTIONS: dict[str, list[tuple[str, int]]] = {}
for _expectation, _listed in _EXPECTED.items():
    for _word in _listed.split():
        _SUGGESTIONS.setdefault(_word, []).append(_expectation)

# How a picture is that meets an expectation, by axis and direction.
_LOOKS = {
    ("light", -1): "dark",
    ("light", 1): "bright",
    ("warmth", -1): "cool in colour",
    ("warmth", 1): "warm in colour",
    ("colour", -1): "muted",
    ("colour", 1): "vivid",
    ("detail", -1): "calm and simple",
    ("detail", 1): "rich in detail",
}

_COLOUR_WORDS = {
    "black": "dark",
    "white": "white",
    "ivory": "white",
    "grey": "grey",
    "gray": "grey",
    "silver": "grey",
    "brown": "brown",
    "chocolate": "brown",
    "red": "red",
    "crimson": "red",
    "scarlet": "red",
    "ruby": "red",
    "pink": "pink",
    "orange": "orange",
    "yellow": "yellow",
    "gold": "yellow",
    "golden": "yellow",
    "green": "green",
    "emerald": "green",
    "teal": "teal",
    "turquoise": "teal",
    "blue": "blue",
    "navy": "blue",
    "purple": "purple",
    "violet": "purple",
    "lavender": "purple",
}


@dataclass(frozen=True)
class Reflection:
    """What a comparison found.

    Attributes:
        agreements: Clauses, for instance 'the word "night" suits a picture that is dark'.
        differences: Clauses, for instance 'the word "summer" suggests a picture that is bright, but it is dark'.
    """

    agreements: tuple[str, ...]
    differences: tuple[str, ...]

    def sentences(self) -> list[str]:
        """One sentence for each kind; one for both where there is nothing to tell."""
        if not self.agreements and not self.differences:
            return ["No word of the text speaks for or against the picture's look."]
        return [
            f"{opening} {'; '.join(clauses)}."
            for opening, clauses in (
                ("Text and picture agree:", self.agreements),
                ("Text and picture differ:", self.differences),
            )
            if clauses
        ]


def reflect(attributes: Attributes, seen: Measures) -> Reflection:
    """Compares the words of all attributes with the measures."""
    words = _words(attributes)
    measured = _measured(seen)
    agreements, differences = [], []
    for expectation, look in _LOOKS.items():
        axis, direction = expectation
        meeting = [word for word in words if expectation in _SUGGESTIONS.get(word, ())]
        if not meeting or measured[axis] == 0:
            continue
        if measured[axis] == direction:
            agreements.append(f"{_named(meeting)} {_verb(meeting, 'suit')} a picture that is {look}")
        else:
            actual = _LOOKS[axis, measured[axis]]
            differences.append(f"{_named(meeting)} {_verb(meeting, 'suggest')} one that is {look}, but it is {actual}")
    for word in words:
        family = _COLOUR_WORDS.get(word)
        if family is None:
            continue
        found = [colour for colour in seen.colours if FAMILY_OF[colour.name] == family]
        share = sum(colour.share for colour in found)
        if share >= _PRESENT_SHARE:
            agreements.append(f'the word "{word}" meets {found[0].name} in the picture')
        elif share < _ABSENT_SHARE:
            differences.append(f'the word "{word}" meets no such colour in the picture')
    return Reflection(agreements=tuple(agreements), differences=tuple(differences))


def _measured(seen: Measures) -> dict[str, int]:
    """Each axis' direction, 0 for ordinary values; the bounds are those of the words in `prose`."""
    warmth = 0 if seen.chroma < 5 else 1 if seen.warmth > 0.3 else -1 if seen.warmth < -0.1 else 0
    return {
        "light": -1 if seen.lightness < 36 else 1 if seen.lightness > 60 else 0,
        "warmth": warmth,
        "colour": -1 if seen.chroma < 14 else 1 if seen.vivid_share > 0.15 else 0,
        "detail": -1 if seen.edges < 0.19 else 1 if seen.edges > 0.29 else 0,
    }


def _words(attributes: Attributes) -> list[str]:
    """The different words of all values that are in a list, in their order; compounds by their parts, else."""
    found: dict[str, None] = {}
    for _, values in attributes:
        for value in values:
            for whole in _WORD.findall(value.lower()):
                for word in [whole] if _is_known(whole) else whole.split("-"):
                    # A plural that only an added s makes counts as its singular.
                    known = word if _is_known(word) else word.removesuffix("s")
                    if _is_known(known):
                        found[known] = None
    return list(found)


def _is_known(word: str) -> bool:
    return word in _SUGGESTIONS or word in _COLOUR_WORDS


def _named(words: Sequence[str]) -> str:
    quoted = [f'"{word}"' for word in words[:_MOST_WORDS]]
    return f"the word{'s' if len(quoted) > 1 else ''} {joined(quoted)}"


def _verb(words: Sequence[str], verb: str) -> str:
    return verb if len(words) > 1 else f"{verb}s"
