"""Puts a picture's measures into words: colours first, for they tell pictures apart best."""

from __future__ import annotations

from .attributes import article, joined
from .colours import FAMILY_OF
from .layout import Measures


def palette_phrase(seen: Measures) -> str:
    """The dominant colours, for instance "black and crimson with touches of gold"."""
    main = [colour.name for colour in seen.colours if colour.share >= 0.16][:3]
    if not main:
        main = [colour.name for colour in seen.colours[:3]]
        return f"many colours, {joined(main)} among them"
    touches = [
        colour.name
        for colour in seen.colours
        if 0.03 <= colour.share < 0.16 and colour.name not in main and _stands_out(colour.name, main)
    ][:3]
    alone = len(main) == 1 and seen.colours[0].share > 0.75
    first = f"almost only {main[0]}" if alone else joined(main)
    return f"{first} with touches of {joined(touches)}" if touches else first


def tone_words(seen: Measures) -> list[str]:
    """How light, contrasted, colourful and warm the picture is; ordinary values are not mentioned."""
    words = []
    if seen.lightness < 20:
        words.append("very dark")
    elif seen.lightness < 36:
        words.append("dark")
    elif seen.lightness > 74:
        words.append("very bright")
    elif seen.lightness > 60:
        words.append("bright")
    if seen.chroma < 3.5:
        words.append("black-and-white")
    elif seen.chroma < 8:
        words.append("nearly colourless")
    elif seen.chroma < 14:
        words.append("muted")
    elif seen.vivid_share > 0.35:
        words.append("intensely colourful")
    elif seen.vivid_share > 0.15:
        words.append("vivid")
    if seen.chroma >= 5:
        if seen.warmth > 0.72:
            words.append("warm")
        elif seen.warmth < -0.35:
            words.append("cold")
        elif seen.warmth < 0:
            words.append("cool")
    if seen.contrast > 33:
        words.append("high-contrast")
    elif seen.contrast < 17:
        words.append("low-contrast")
    return words or ["balanced"]


def mood_words(seen: Measures) -> tuple[str, str]:
    """Two words for the mood that such light and colour commonly set (§3.2.1, visual prompting: theme, mood)."""
    light = "dark" if seen.lightness < 36 else "bright" if seen.lightness > 60 else "middle"
    if seen.chroma < 4:
        hue = "grey"
    elif seen.vivid_share > 0.15:
        hue = "vivid warm" if seen.warmth > 0.3 else "vivid cool" if seen.warmth < -0.2 else "vivid mixed"
    else:
        hue = "soft warm" if seen.warmth > 0.3 else "soft cool" if seen.warmth < -0.1 else "soft mixed"
    return _MOODS[light, hue]


_MOODS = {
    ("dark", "grey"): ("noir-like", "stark"),
    ("dark", "vivid warm"): ("fiery", "dramatic"),
    ("dark", "vivid cool"): ("electric", "nocturnal"),
    ("dark", "vivid mixed"): ("theatrical", "intense"),
    ("dark", "soft warm"): ("brooding", "intimate"),
    ("dark", "soft cool"): ("cold", "mysterious"),
    ("dark", "soft mixed"): ("sombre", "tense"),
    ("middle", "grey"): ("documentary", "classic"),
    ("middle", "vivid warm"): ("energetic", "passionate"),
    ("middle", "vivid cool"): ("adventurous", "fresh"),
    ("middle", "vivid mixed"): ("colourful", "lively"),
    ("middle", "soft warm"): ("earthy", "nostalgic"),
    ("middle", "soft cool"): ("cool", "pensive"),
    ("middle", "soft mixed"): ("quiet", "sober"),
    ("bright", "grey"): ("minimal", "clinical"),
    ("bright", "vivid warm"): ("sunny", "cheerful"),
    ("bright", "vivid cool"): ("playful", "breezy"),
    ("bright", "vivid mixed"): ("playful", "festive"),
    ("bright", "soft warm"): ("gentle", "romantic"),
    ("bright", "soft cool"): ("airy", "serene"),
    ("bright", "soft mixed"): ("clean", "restrained"),
}


def layout_phrases(seen: Measures) -> list[str]:
    """Where things stand: background, upper and lower part, light and what stands out."""
    phrases = []
    if seen.background.share > 0.55:
        phrases.append(f"{article(seen.background.name)} {seen.background.name} background")
    top, middle, bottom = seen.thirds
    if FAMILY_OF[top] != FAMILY_OF[bottom]:
        phrases.append(f"{top} above, {bottom} below")
    elif FAMILY_OF[middle] != FAMILY_OF[top]:
        phrases.append(f"a band of {middle} across the {top}")
    if seen.frame > 12:
        phrases.append("a light centre within dark edges")
    elif seen.frame < -12:
        phrases.append("a dark centre within light edges")
    elif seen.halves > 18:
        phrases.append("lighter in the upper half")
    elif seen.halves < -18:
        phrases.append("darker in the upper half")
    if seen.mass_share > 0.135:
        phrases.append(f"most happening {_place(*seen.mass)}")
    return phrases


def texture_phrases(seen: Measures) -> list[str]:
    """How busy, how symmetrical, which lines, which format."""
    phrases = []
    if seen.edges > 0.36:
        phrases.append("crowded with fine detail")
    elif seen.edges > 0.29:
        phrases.append("richly detailed")
    elif seen.edges < 0.12:
        phrases.append("smooth and nearly empty")
    elif seen.edges < 0.19:
        phrases.append("simple, with large calm areas")
    if seen.verticality > 0.12:
        phrases.append("built of upright lines")
    elif seen.verticality < -0.12:
        phrases.append("built of horizontal lines")
    if seen.edges > 0.02 and seen.diagonals > 0.46:
        phrases.append("full of slanting lines")
    elif seen.edges > 0.02 and seen.roundness > 0.94 and seen.edges < 0.25:
        phrases.append("full of round and curving shapes")
    elif seen.roundness < 0.75:
        phrases.append("of straight, angular shapes")
    if seen.symmetry > 0.9 and seen.top_symmetry > 0.7:
        phrases.append("symmetrical in every direction")
    elif seen.symmetry > 0.93:
        phrases.append("mirrored left and right")
    elif seen.symmetry > 0.7:
        phrases.append("nearly symmetrical")
    elif seen.symmetry < 0.35:
        phrases.append("scattered and uneven" if seen.mass_share > 0.17 else "lopsided")
    if seen.hues >= 7:
        phrases.append("many-hued")
    elif seen.hues <= 2 and seen.chroma >= 5:
        phrases.append("of one or two hues")
    if seen.aspect > 1.25:
        phrases.append("wide in format")
    elif seen.aspect > 0.85:
        phrases.append("square in format")
    elif seen.aspect < 0.5:
        phrases.append("tall and narrow in format")
    return phrases


def look(seen: Measures) -> str:
    """The whole picture in two to three sentences."""
    mood = ", ".join(mood_words(seen))
    tones = ", ".join(tone_words(seen))
    sentences = [f"{palette_phrase(seen)} in {article(tones)} {tones} picture of {article(mood)} {mood} mood"]
    sentences += [", ".join(phrases) for phrases in (texture_phrases(seen), layout_phrases(seen)) if phrases]
    return " ".join(f"{sentence[:1].upper()}{sentence[1:]}." for sentence in sentences)


def _stands_out(name: str, main: list[str]) -> bool:
    return FAMILY_OF[name] not in {FAMILY_OF[other] for other in main}


def _place(row: str, column: str) -> str:
    if (row, column) == ("middle", "centre"):
        return "in the very centre"
    if column == "centre":
        return f"at the {row}"
    if row == "middle":
        return f"on the {column}"
    return f"in the {row} {column} corner"
