"""The describer without a model: attributes in sentences, a picture's colours and composition in words.

It is what a machine with neither GPU nor weights can do. It recognises nothing in a picture and is no MLLM; provenance,
recipe and log say so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import PIL

from dmesr_server.enrichment.routes import HYBRID, IMAGE, REFLECT, ROUTES, TEXT

from . import attributes as sentences
from . import layout, prose, reflection
from .attributes import AttributeSentences
from .base import DescribeRequest, DescriptionFailure, DescriptionResult, Window

#: Raise it with every change of words, measures or colours: it is part of each description's identity.
PROMPT_REVISION = "palette-1"
#: The same for the route `reflect`, which has words of its own.
REFLECT_REVISION = "palette-reflect-1"

_PICTURE_PIXELS = 96 * 96
# An encoder reads some 256 tokens. The text route spends them on the item's own words; the hybrid one keeps room
# for the picture.
_PROSE_CHARACTERS = {TEXT: 900, HYBRID: 420, REFLECT: 300}
_OTHERS_CHARACTERS = {TEXT: 400, HYBRID: 160, REFLECT: 100}
_PHRASES_CHARACTERS = 400
_TITLE_CHARACTERS = 200


class PaletteDescriber:
    """Reads colours, light, contrast, texture and layout from the pixels; writes English."""

    name = "palette"
    is_mllm = False
    model = "none"
    engine = f"pillow {PIL.__version__}"
    routes = (*ROUTES, REFLECT)
    recipe_routes = ROUTES
    generates = True
    picture_pixels: int | None = _PICTURE_PIXELS

    def __init__(self, *, workers: int):
        """Makes the describer.

        Args:
            workers: Calls in flight; each works in a thread.
        """
        self.window = Window(items_per_call=32, calls=workers)

    async def start(self) -> None:
        """Nothing to load."""

    async def stop(self) -> None:
        """Nothing to let go of."""

    def recipe_fields(self, route: str) -> Mapping[str, Any]:
        """The revision of words and measures, the picture's size. Always English, whatever the catalog's language."""
        revision = REFLECT_REVISION if route == REFLECT else PROMPT_REVISION
        fields: dict[str, Any] = {"prompt_revision": revision, "language": "en"}
        if route != TEXT:
            fields["picture_pixels"] = _PICTURE_PIXELS
        return fields

    async def describe(self, requests: Sequence[DescribeRequest]) -> list[DescriptionResult | DescriptionFailure]:
        """Describes in a thread. Never fails: there is something to say about every pixel and every attribute."""
        return await asyncio.to_thread(_described, requests)


def _described(requests: Sequence[DescribeRequest]) -> list[DescriptionResult | DescriptionFailure]:
    results: list[DescriptionResult | DescriptionFailure] = []
    seen: tuple[int, layout.Measures] | None = None
    for request in requests:
        began = time.perf_counter()
        measures = None
        if request.picture is not None:
            # The image and the hybrid route of an item come one after the other with one picture: measured once.
            if seen is None or seen[0] != id(request.picture):
                seen = id(request.picture), layout.measure(request.picture)
            measures = seen[1]
        text = _text(request, measures)
        results.append(DescriptionResult(text=text, milliseconds=(time.perf_counter() - began) * 1e3))
    return results


def _text(request: DescribeRequest, measures: layout.Measures | None) -> str:
    read = sentences.read(request.attributes)
    if request.route == TEXT:
        return " ".join([_introduction(read, request.domain), *_details(read, TEXT)])
    assert measures is not None
    if request.route == IMAGE:
        return prose.look(measures)
    if request.route == REFLECT:
        return _reflect(request, read, measures)
    return _hybrid(read, measures, request.domain)


def _hybrid(read: AttributeSentences, measures: layout.Measures, domain: str) -> str:
    """Relates both in the first sentence, then tells the picture and the item's own words."""
    mood = ", ".join(prose.mood_words(measures))
    colours = sentences.joined([colour.name for colour in measures.colours[:2]])
    look = f"with {sentences.article(mood)} {mood} look in {colours}"
    return " ".join([_introduction(read, domain, look=look), prose.look(measures), *_details(read, HYBRID)])


def _reflect(request: DescribeRequest, read: AttributeSentences, measures: layout.Measures) -> str:
    """First what both say or dispute, then what the picture and the text say beyond that."""
    found = reflection.reflect(request.attributes, measures)
    return " ".join(
        [
            _introduction(read, request.domain),
            *found.sentences(),
            prose.look(measures),
            *_details(read, REFLECT),
        ]
    )


def _introduction(read: AttributeSentences, domain: str, *, look: str = "") -> str:
    brief = replace(
        read,
        title=sentences.shortened(read.title, characters=_TITLE_CHARACTERS),
        phrases=tuple(sentences.shortened(phrase, characters=_PHRASES_CHARACTERS) for phrase in read.phrases),
    )
    return brief.introduction(domain, look=look)


def _details(read: AttributeSentences, route: str) -> list[str]:
    details = []
    if read.prose:
        details.append(sentences.shortened(" ".join(read.prose), characters=_PROSE_CHARACTERS[route]))
    if read.others:
        others = sentences.shortened("; ".join(read.others), characters=_OTHERS_CHARACTERS[route])
        details.append(f"{others[:1].upper()}{others[1:]}{'' if others.endswith('…') else '.'}")
    return details
