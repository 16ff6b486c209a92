"""Stand-ins that take no time, so that what is left is the pipeline's own. They belong to the benchmark alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from dmesr_server.enrichment.describers import DescribeRequest, DescriptionFailure, DescriptionResult, Window
from dmesr_server.enrichment.rendering import original_text
from dmesr_server.enrichment.routes import ROUTES
from numpy.typing import NDArray


class NullDescriber:
    """Gives each item a text of its own at once: what is known about it, or its name where a route sees no text."""

    name = "null"
    is_mllm = False
    model = "null"
    engine = "null"
    routes = recipe_routes = ROUTES
    generates = True
    picture_pixels: int | None = 512 * 28 * 28
    window = Window(items_per_call=1, calls=64)

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def recipe_fields(self, route: str) -> Mapping[str, Any]:
        return {"prompt_revision": "null"}

    async def describe(self, requests: Sequence[DescribeRequest]) -> list[DescriptionResult | DescriptionFailure]:
        return [
            DescriptionResult(f"{request.item_id} by {request.route}. {original_text(request.attributes)}")
            for request in requests
        ]


class NullEncoder:
    """Gives every text the same vector."""

    name = "null"
    model = "null"
    revision = "1"
    dim = 384
    batch_size = 64

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def recipe_fields(self) -> Mapping[str, Any]:
        return {"name": self.name, "dim": self.dim}

    async def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.full((len(texts), self.dim), self.dim**-0.5, np.float32)
