"""The describer of texts that a team made elsewhere. It describes nothing: what was not imported is absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmesr_server.enrichment.routes import REFLECT, ROUTES

from .base import DescribeRequest, DescriptionFailure, DescriptionResult, Window

NAME = "import"


class ImportedDescriber:
    """Stands for a model that ran somewhere else, so that its texts have a recipe like all others."""

    name = NAME
    engine = "import"
    routes = recipe_routes = (*ROUTES, REFLECT)
    generates = False
    picture_pixels: int | None = None
    window = Window(items_per_call=1, calls=1)

    def __init__(self, *, model: str, is_mllm: bool):
        """Names who made the texts.

        Args:
            model: The model and its revision, as the importing team states it. Part of the recipe's identity.
            is_mllm: True when a multimodal LLM made them.
        """
        self.model = model
        self.is_mllm = is_mllm

    async def start(self) -> None:
        """Nothing to load."""

    async def stop(self) -> None:
        """Nothing to let go of."""

    def recipe_fields(self, route: str) -> Mapping[str, Any]:
        """Nothing but the model: how it was asked is the importing team's to know."""
        return {"prompt_revision": "import", "domain": "", "language": ""}

    async def describe(self, requests: Sequence[DescribeRequest]) -> list[DescriptionResult | DescriptionFailure]:
        """Never called with anything: `generates` is False."""
        assert not requests, "imported descriptions are not made here"
        return []
