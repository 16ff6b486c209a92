"""Pictures as data URIs, each made once: an item's routes and rounds show the same one again and again."""

from __future__ import annotations

import asyncio
import base64
import io
import weakref
from collections.abc import Sequence

from PIL import Image

from .base import Turn

JPEG_QUALITY = 90  # part of the recipe: another one is another picture


class PictureUris:
    """Keeps the URI of a picture for as long as somebody holds the picture."""

    def __init__(self, *, picture_format: str):
        """Settles the format, "jpeg" or "png"."""
        self._format = picture_format
        self._made: dict[int, tuple[weakref.ref[Image.Image], asyncio.Task[str]]] = {}

    async def of(self, turns: Sequence[Turn]) -> dict[int, str]:
        """The URIs of the turns' pictures, by the turn's place."""
        return {index: await self._uri(turn.picture) for index, turn in enumerate(turns) if turn.picture is not None}

    async def _uri(self, picture: Image.Image) -> str:
        key = id(picture)
        if key not in self._made:
            made = asyncio.create_task(asyncio.to_thread(self._encoded, picture))
            self._made[key] = (weakref.ref(picture, lambda _: self._made.pop(key, None)), made)
        return await asyncio.shield(self._made[key][1])

    def _encoded(self, picture: Image.Image) -> str:
        buffer = io.BytesIO()
        if self._format == "png":
            picture.save(buffer, "PNG", compress_level=1)
        else:
            picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
        return f"data:image/{self._format};base64,{base64.b64encode(buffer.getvalue()).decode()}"
