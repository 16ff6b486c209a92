"""What the MLLM describer asks of an engine: chat turns in, one text out, many at a time.

Errors that :meth:`Engine.generate` raises, and what the describer makes of them:

    EngineError
    ├── EngineDown       the engine is gone: open descriptions fail with a reason, it is restarted with back-off
    ├── PromptTooLong    attributes are shortened and asked again; see `describers/mllm.py`
    ├── PictureRejected  the item's picture routes fail
    └── RequestFailed    this one description fails

A :class:`~dmesr_server.errors.ServiceError` (DESCRIBER_UNAVAILABLE) means that nothing can go on: the job fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from PIL import Image

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: Who speaks.
        text: What is said.
        picture: RGB, shown before the text; only on user turns. Never written to. Turns of one item share one object.
    """

    role: Role
    text: str
    picture: Image.Image | None = None


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_tokens: At most so many are written.
        temperature: 0 takes the best token always.
        top_p: Mass of the tokens that are drawn from.
        repetition_penalty: Above 1 makes tokens that stand in the prompt or text less likely.
        seed: Of the draw; each call starts from it, so that a text does not depend on what else is in flight.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Generation:
    """What an engine wrote.

    Attributes:
        text: Without special tokens.
        finish_reason: "stop" at the end of the turn, "length" at `max_tokens`.
        tokens_in: Tokens of the prompt, the picture's included; 0 where the engine does not tell.
        tokens_out: Tokens written.
        tokens_cached: Those of `tokens_in` that a prefix cache saved.
        milliseconds: From the call to the last token, waiting in the engine's queue included.
        token_ids: What was written as tokens; empty where the engine does not tell.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    tokens_in: int
    tokens_out: int
    tokens_cached: int
    milliseconds: float
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class TokenCount:
    """Length of a prompt in tokens."""

    total: int
    picture: int  # those of `total` that stand for pictures


class EngineError(Exception):
    """A generation that did not come to an end."""


class EngineDown(EngineError):  # noqa: N818 - reads as what happened
    """The engine died, or cannot be reached any more. `stop` and `start` may bring it back."""


class PromptTooLong(EngineError):  # noqa: N818 - reads as what happened
    """The prompt and `max_tokens` do not fit the context.

    Attributes:
        expected: The most tokens that the prompt may have; 0 where the engine does not tell.
        actual: Those that it has; 0 where the engine does not tell.
        picture: Those of `actual` that stand for pictures; 0 where the engine does not tell.
    """

    def __init__(self, *, expected: int, actual: int, picture: int = 0):
        super().__init__(f"the prompt has {actual or 'too many'} tokens, at most {expected or '?'} fit the context")
        self.expected = expected
        self.actual = actual
        self.picture = picture


class PictureRejected(EngineError):  # noqa: N818 - reads as what happened
    """The engine does not take this picture, for instance because its sides are too unlike. The message says why."""


class RequestFailed(EngineError):  # noqa: N818 - reads as what happened
    """The engine refused or gave up this one request; others may well succeed. The message says why."""


class Engine(Protocol):
    """Runs a multimodal LLM. `describers.create` makes one from an `EnrichmentConfig`.

    Until `start` nothing heavy may be loaded: the API process makes engines too, to learn `recipe_fields`.
    All calls come from one event loop.

    Attributes:
        name: As in the configuration, for instance "vllm".
        model: As in the configuration; a folder's own name for a folder.
        revision: The hub's commit or a hash of the weights; empty where nobody tells.
        version: What runs it, with version, for instance "vllm 0.32.0"; provenance only.
        context_tokens: Prompt and answer together; None until it is known.
        is_mllm: True: every engine runs a multimodal LLM.
        concurrency: Calls of `generate` that it likes to have in flight.
        items_per_call: 1, or how many items one call of `describe` should bring so that batches are full.
    """

    name: str
    model: str
    revision: str
    version: str
    context_tokens: int | None
    is_mllm: bool
    concurrency: int
    items_per_call: int

    async def start(self) -> None:
        """Loads the model and warms up; a second call does nothing.

        Raises:
            ServiceError: DESCRIBER_UNAVAILABLE, with the remedy: no such model, weights missing, out of memory, a wrong
                key, no vision.
        """
        ...

    async def stop(self) -> None:
        """Lets go of the model, also after a death; `start` may follow. Open calls end with `EngineDown`."""
        ...

    def recipe_fields(self) -> Mapping[str, Any]:
        """What shapes the texts beside model, revision and sampling, for instance the quantisation: for identity."""
        ...

    async def generate(self, turns: Sequence[Turn], *, sampling: Sampling) -> Generation:
        """Continues a conversation by a turn of the assistant. Concurrent calls are welcome; cancelling is too.

        Raises:
            EngineError: See the top of this file.
            ServiceError: DESCRIBER_UNAVAILABLE when nothing can go on at all, for instance a spent budget.
        """
        ...

    async def count_tokens(self, turns: Sequence[Turn]) -> TokenCount | None:
        """Length of the prompt as `generate` would send it; None where the engine cannot tell, or not yet."""
        ...

    def picture_tokens(self, width_px: int, height_px: int) -> int | None:
        """Tokens of a picture of that size, from the model's small files alone; None where they do not tell."""
        ...
