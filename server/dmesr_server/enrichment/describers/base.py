"""What the pipeline asks of a describer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from dmesr_server.errors import Reason


@dataclass(frozen=True)
class Window:
    """How a describer likes to be asked: the pipeline keeps this much in flight, whatever the batch of the store.

    An engine with continuous batching wants single items and many calls at once; one that pads its batches wants few
    calls of several items.
    """

    items_per_call: int  # an item's routes always come in one call, one after the other
    calls: int  # in flight at once


@dataclass(frozen=True)
class DescribeRequest:
    """One item and one route.

    Attributes:
        item_id: For messages and logs; descriptions must not depend on it.
        route: For instance "hybrid".
        attributes: Names and values in the catalogue's order; empty on the image route.
        picture: RGB, shrunk to the describer's `picture_pixels`; None on the text route. The requests of one item
            share one object. Never written to.
        domain: What the catalog holds, for instance "film".
        language: The language to write in, BCP 47.
    """

    item_id: str
    route: str
    attributes: tuple[tuple[str, tuple[str, ...]], ...]
    picture: Image.Image | None
    domain: str
    language: str


@dataclass(frozen=True)
class DescriptionResult:
    """A description and how it came to be (all but `text` is provenance, no part of the identity)."""

    text: str
    milliseconds: float = 0.0
    rounds: int = 0  # of refinement (hybrid)
    stop_reason: str = "stop"
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DescriptionFailure:
    """Why there is no description. The job goes on."""

    reason: Reason
    message: str


class Describer(Protocol):
    """Describes items by routes (§3.2.1).

    Until `start` nothing heavy may be loaded: the API process makes describers too, to learn `recipe_fields`.

    Attributes:
        name: As in the configuration, for instance "vllm".
        is_mllm: False where no multimodal LLM makes the texts.
        model: The model and its revision.
        routes: The routes that it can describe.
        recipe_routes: Those that its recipes have in any case; the others only where a job asks for them.
        generates: False where texts are only brought in: the pipeline then asks for none and keeps what is there.
        picture_pixels: Pictures are shrunk to about so many pixels; None hands them over as they are.
        window: How it likes to be asked.
    """

    name: str
    is_mllm: bool
    model: str
    routes: tuple[str, ...]
    recipe_routes: tuple[str, ...]
    generates: bool
    picture_pixels: int | None
    window: Window

    @property
    def engine(self) -> str:
        """What runs it, with version; provenance only."""

    async def start(self) -> None:
        """Loads what it needs. Called before the first `describe`; a second call does nothing.

        Raises:
            ServiceError: DESCRIBER_UNAVAILABLE, with the remedy.
        """
        ...

    async def stop(self) -> None:
        """Lets go of everything; `start` may follow."""
        ...

    def recipe_fields(self, route: str) -> Mapping[str, Any]:
        """All that shapes the text of a route, for its identity: prompt_revision, sampling, seed and the like.

        Everything that JSON holds. Domain and language are added by the recipe; a describer that ignores one of them
        says so by giving its own value for it.
        """
        ...

    async def describe(self, requests: Sequence[DescribeRequest]) -> list[DescriptionResult | DescriptionFailure]:
        """Describes items; may be called again before it has answered, up to `window.calls` times.

        Returns:
            One answer for each request, in order.

        Raises:
            ServiceError: DESCRIBER_UNAVAILABLE when it cannot go on at all; the job then fails.
        """
        ...


@dataclass(frozen=True)
class PromptTurn:
    """One turn of a prompt that is only shown.

    Attributes:
        role: Who speaks: "system", "user" or "assistant".
        text: What is said.
        has_picture: Whether the picture stands before the text.
        round: Of refinement; 0 for the turns that ask for the description itself.
        is_placeholder: Whether the text only says what the model has yet to write.
    """

    role: str
    text: str
    has_picture: bool = False
    round: int = 0
    is_placeholder: bool = False


@runtime_checkable
class ShowsPrompts(Protocol):
    """A describer that asks by prompts."""

    def prompt(self, request: DescribeRequest) -> tuple[PromptTurn, ...]:
        """What it would send for a request, whole: attributes are shortened only once an engine finds them too long."""
        ...

    def picture_tokens(self, width_px: int, height_px: int) -> int | None:
        """Tokens of a picture of that size; None where nobody can tell without the model."""
        ...
