"""The describer that asks a multimodal LLM (§3.2.1), whatever engine runs it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dmesr_server.config import MllmConfig
from dmesr_server.enrichment import guard, refinement
from dmesr_server.enrichment.engines import (
    Engine,
    EngineDown,
    EngineError,
    PictureRejected,
    PromptTooLong,
    RequestFailed,
    Sampling,
    Turn,
)
from dmesr_server.enrichment.engines.supervision import SupervisedEngine
from dmesr_server.enrichment.prompts import ROUNDS, load
from dmesr_server.enrichment.routes import HYBRID, REFLECT, ROUTES, TEXT, needs_picture
from dmesr_server.errors import ServiceError
from dmesr_server.telemetry import traces

from . import specimen
from .base import DescribeRequest, DescriptionFailure, DescriptionResult, PromptTurn, Window
from .mllm_description import Description, Means, Unusable, sampling, stated

_WARM_UP_TOKENS = 8
# What a prompt that is only shown has in the place of answers.
_DRAFT = "(the description so far)"
_POINTS = "(the points of the review; the round ends here when there are none)"

Answer = DescriptionResult | DescriptionFailure


class MllmDescriber:
    """Asks an engine by the prompts of the routes; guards, refines and accounts for what it answers."""

    is_mllm = True
    routes = recipe_routes = (*ROUTES, REFLECT)
    generates = True

    def __init__(self, engine: Engine, config: MllmConfig):
        """Reads the prompts; the engine is started by `start`.

        Args:
            engine: Runs the model.
            config: Sampling, refinement, prompts and supervision.

        Raises:
            ServiceError: DESCRIBER_UNAVAILABLE when the prompts cannot be used.
        """
        self._engine = SupervisedEngine(engine, config)
        self._config = config
        self._prompts = load(config.prompts_folder)
        self._means = Means(self._engine, config, self._prompts)
        self._checks: dict[bool, asyncio.Lock] = {True: asyncio.Lock(), False: asyncio.Lock()}
        self._checked: set[bool] = set()  # text (False) and pictures (True), once each
        self.name = engine.name
        self.model = f"{engine.model}@{engine.revision[:12]}" if engine.revision else engine.model
        self.picture_pixels: int | None = config.max_pixels
        self.window = Window(items_per_call=engine.items_per_call, calls=engine.concurrency)

    @property
    def engine(self) -> str:
        """What runs the model, with version."""
        return self._engine.engine.version

    async def start(self) -> None:
        """Starts the engine when it is not up; the first time, asks it for a few words."""
        await self._engine.start()
        await self._check(with_picture=False)

    async def stop(self) -> None:
        """Unloads the model."""
        await self._engine.stop()

    def recipe_fields(self, route: str) -> Mapping[str, Any]:
        """Prompt, sampling, guard, and for hybrid the way of refinement."""
        config = self._config
        fields: dict[str, Any] = {
            **self._engine.engine.recipe_fields(),
            "prompt_revision": self._prompts.revision(route, mode=config.hybrid_mode),
            "guard": guard.GUARD_REVISION,
            "sampling": stated(sampling(config)),
        }
        if needs_picture(route):
            fields["picture_pixels"] = config.max_pixels
        if route == HYBRID:
            fields["hybrid_mode"] = config.hybrid_mode
            if config.hybrid_mode == ROUNDS:
                fields |= {"max_rounds": config.max_rounds, "refinement": refinement.REFINEMENT_REVISION}
        return fields

    async def describe(self, requests: Sequence[DescribeRequest]) -> list[Answer]:
        """Describes items side by side.

        The picture routes of an item run one after the other, so that a prefix cache has read the picture when the
        second one asks.
        """
        if any(request.picture is not None for request in requests):
            await self._check(with_picture=True)
        chains: dict[tuple[str, bool], list[int]] = {}
        for index, request in enumerate(requests):
            chains.setdefault((request.item_id, request.picture is None), []).append(index)
        answers: dict[int, Answer] = {}

        async def run(chain: list[int]) -> None:
            for index in chain:
                answers[index] = await self._answer(requests[index])

        try:
            async with asyncio.TaskGroup() as group:
                for chain in chains.values():
                    group.create_task(run(chain))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [answers[index] for index in range(len(requests))]

    def prompt(self, request: DescribeRequest) -> tuple[PromptTurn, ...]:
        """The turns of a request; of a refined one those of its first round too."""
        opening = Description(self._means, request).opening(request.attributes)
        turns: Sequence[Turn] = opening
        if request.route == HYBRID and self._config.hybrid_mode == ROUNDS and self._config.max_rounds:
            words = {"domain": request.domain, "language": request.language}
            reviewed = self._prompts.review(opening, _DRAFT, **words)
            turns = self._prompts.revise(reviewed, _POINTS, **words)
        return tuple(
            PromptTurn(
                role=turn.role,
                text=turn.text,
                has_picture=turn.picture is not None,
                round=int(place >= len(opening)),
                is_placeholder=turn.role == "assistant",
            )
            for place, turn in enumerate(turns)
        )

    def picture_tokens(self, width_px: int, height_px: int) -> int | None:
        """Tokens of a picture of that size."""
        return self._engine.engine.picture_tokens(width_px, height_px)

    async def _answer(self, request: DescribeRequest) -> Answer:
        """The description of one item by one route, or why there is none."""
        with traces.step(f"describe {request.route}", {"dmesr.route": request.route}) as span:
            answer = await self._made(request)
            if isinstance(answer, DescriptionFailure):
                span.note({"dmesr.reason": answer.reason})
                span.settled(failed=answer.reason)
            else:
                span.note(
                    {
                        "dmesr.rounds": answer.rounds,
                        "gen_ai.request.model": self._engine.engine.model,
                        "gen_ai.usage.input_tokens": answer.tokens_in,
                        "gen_ai.usage.output_tokens": answer.tokens_out,
                    }
                )
            return answer

    async def _made(self, request: DescribeRequest) -> Answer:
        what = f"{request.route} of the item {request.item_id}"
        try:
            return await Description(self._means, request).made()
        except EngineDown as error:
            why = f"{what}: the engine {self.name} died ({error}); it is restarted, 'enrich retry' describes this again"
            return DescriptionFailure("DESCRIBER_UNAVAILABLE", why)
        except PictureRejected as error:
            return DescriptionFailure("PICTURE_UNREADABLE", f"{what}: {error}; send another picture")
        except PromptTooLong as error:
            why = f"{what}: {error}, even with its attributes cut to nothing; {_more_room(self.name)}"
            return DescriptionFailure("DESCRIPTION_UNUSABLE", why)
        except EngineError as error:
            return DescriptionFailure("DESCRIPTION_UNUSABLE", f"{what}: {error}")
        except Unusable as error:
            why = f"{what}: {error} ({self._config.attempts} attempts, each with another seed)"
            return DescriptionFailure("DESCRIPTION_UNUSABLE", why)

    async def _check(self, *, with_picture: bool) -> None:
        """Once for text and once for pictures: a few words about a specimen, so that a bad set-up fails before work.

        It also warms the engine up.

        Raises:
            ServiceError: DESCRIBER_UNAVAILABLE.
        """
        async with self._checks[with_picture]:
            if with_picture in self._checked:
                return
            request = specimen.request(HYBRID if with_picture else TEXT, pixels=self._config.max_pixels)
            turns = Description(self._means, request).opening(request.attributes)
            try:
                await self._warm_up(turns, sampling(self._config))
            except PromptTooLong as error:
                why = f"its context is too short for {'pictures' if with_picture else 'prompts'}: {error}"
                raise self._unavailable(why, _more_room(self.name)) from error
            except (PictureRejected, RequestFailed) as error:
                why = f"it does not take {'pictures' if with_picture else 'the prompt'}: {error}"
                remedy = "choose a multimodal model (enrichment.mllm.model)"
                raise self._unavailable(
                    why, f"{remedy}, or describe by the text alone (--routes text)" if with_picture else remedy
                ) from error
            self._checked.add(with_picture)

    async def _warm_up(self, turns: Sequence[Turn], wanted: Sampling) -> None:
        count = await self._engine.count_tokens(turns)
        context = self._engine.engine.context_tokens
        if count is not None and context is not None and count.total + wanted.max_tokens > context:
            raise PromptTooLong(expected=context - wanted.max_tokens, actual=count.total, picture=count.picture)
        while True:
            try:
                await self._engine.generate(turns, sampling=replace(wanted, max_tokens=_WARM_UP_TOKENS))
            except EngineDown:
                continue  # supervision restarts it, and gives up when that does not help
            return

    def _unavailable(self, why: str, remedy: str) -> ServiceError:
        return ServiceError(
            "DESCRIBER_UNAVAILABLE",
            f"the describer {self.name} cannot work with the model {self.model}: {why}; {remedy}",
            describer=self.name,
            model=self.model,
        )


def _more_room(engine: str) -> str:
    if engine == "vllm":
        return "raise enrichment.vllm.max_model_len, or lower enrichment.mllm.max_pixels or max_tokens"
    return "lower enrichment.mllm.max_pixels or max_tokens, or choose a model with a longer context"
