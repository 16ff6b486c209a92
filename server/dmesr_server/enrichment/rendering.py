"""The original text of an item, as it is encoded for the fine view (§3.3.1) and told to an MLLM."""

from __future__ import annotations

from collections.abc import Sequence

#: Raise it with every change below: it is part of every recipe's identity.
RENDERING_REVISION = "attributes-1"

Attributes = Sequence[tuple[str, Sequence[str]]]


def original_text(attributes: Attributes) -> str:
    """The attribute pairs T_v in the catalogue's order: "title: Heat (1995); genres: Action, Crime".

    White space and control characters become single spaces; attributes without a value are left out.

    Returns:
        The text; empty when no attribute has a value.
    """
    pairs = []
    for name, values in attributes:
        said = [clean for clean in map(_clean, values) if clean]
        if said:
            pairs.append(f"{_clean(name.replace('_', ' '))}: {', '.join(said)}")
    return "; ".join(pairs)


def _clean(text: str) -> str:
    if not text.isprintable():
        text = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(text.split())
