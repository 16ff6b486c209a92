"""The engine elsewhere: any OpenAI-compatible chat endpoint, be it `vllm serve`, llama.cpp or a hosted model.

The official client is not used: httpx2 is here already (the hub's client brings it), and what would remain to be done
is most of the work: one pause for all calls when the endpoint asks for one, fewer calls afterwards, a budget, servers
that answer nonsense.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dmesr_server.config import EnrichmentConfig
from dmesr_server.enrichment.openai_endpoint import (
    Endpoint,
    EndpointError,
    Malformed,
    OutOfQuota,
    RateLimited,
    Refused,
    Settings,
    Unauthorised,
    Unreachable,
)
from dmesr_server.errors import ServiceError

from . import openai_chat as chat
from .base import EngineDown, Generation, PictureRejected, PromptTooLong, RequestFailed, Sampling, TokenCount, Turn
from .openai_budget import TokenBudget
from .openai_chat import Listed, Wording
from .openai_pictures import JPEG_QUALITY, PictureUris

NAME = "openai"
_LOG = logging.getLogger(__name__)
_PROBE = (Turn("user", "Say yes."),)
_PROBE_TOKENS = 16  # the least that some models of OpenAI accept
_PROBE_RETRIES = 2  # who starts a job waits for the answer
_NAMES_IN_MESSAGE = 8
# On the safe side, for budgets: what a token stands for at least.
_CHARACTERS_PER_TOKEN = 3
_PIXELS_PER_TOKEN = 700


class OpenaiEngine:
    """Asks an endpoint for every description."""

    name = NAME
    is_mllm = True
    items_per_call = 1

    def __init__(self, config: EnrichmentConfig):
        """Reads the settings; connects to nothing.

        Raises:
            ServiceError: DESCRIBER_UNAVAILABLE when the base URL is none.
        """
        settings, mllm = config.openai, config.mllm
        self._settings = settings
        self._mllm = mllm
        self.model = mllm.model
        self.revision = mllm.revision
        self.context_tokens: int | None = None
        self.concurrency = settings.concurrency
        try:
            self._endpoint = Endpoint(
                Settings(
                    base_url=settings.base_url,
                    api_key_env=settings.api_key_env,
                    concurrency=settings.concurrency,
                    timeout_seconds=settings.timeout_seconds,
                    max_retries=settings.max_retries,
                )
            )
        except ValueError as error:
            raise self._unavailable(str(error), "set enrichment.openai.base_url") from error
        self.version = f"an OpenAI-compatible endpoint at {self._endpoint.host}"
        self._budget = TokenBudget(limit=settings.token_budget, host=self._endpoint.host, model=self.model)
        self._pictures = PictureUris(picture_format=settings.picture_format)
        self._wording = Wording(self.model, omitted=frozenset(settings.omit), extra=settings.extra)
        self._starting = asyncio.Lock()
        self._up = False
        self._was_up = False
        self._looking = asyncio.Lock()
        self._sees = not settings.check_vision  # or has been seen to see
        self._open: set[asyncio.Task[Generation]] = set()

    def recipe_fields(self) -> Mapping[str, Any]:
        """The pictures' format and fields of the body. The address is none: a model may move."""
        settings = self._settings
        fields: dict[str, Any] = {"picture_format": settings.picture_format}
        if settings.picture_format == "jpeg":
            fields["picture_quality"] = JPEG_QUALITY
        if settings.extra:
            fields["extra"] = settings.extra
        if settings.omit:
            fields["omit"] = sorted(settings.omit)
        return fields

    async def start(self) -> None:
        """Sees that the endpoint is there, knows the model, and takes key and sampling; pays for one short answer."""
        async with self._starting:
            if self._up:
                return
            self._budget.check()
            self._endpoint.open()
            try:
                await self._settle(await self._listed())
            except BaseException:
                await self._endpoint.close()
                raise
            self._up = self._was_up = True
            _LOG.info("%s answers for the model %s", self.version, self.model)

    async def stop(self) -> None:
        """Closes the connections. Open calls end with `EngineDown`."""
        async with self._starting:
            self._up = False
            for task in list(self._open):
                task.cancel()
            if self._open:
                await asyncio.wait(self._open)
            await self._endpoint.close()

    async def generate(self, turns: Sequence[Turn], *, sampling: Sampling) -> Generation:
        """One answer, after as many attempts as it takes."""
        if not self._up:
            raise EngineDown("the endpoint has not been reached yet")
        task = asyncio.create_task(self._generated(turns, sampling))
        self._open.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and caller.cancelling():
                raise
            raise EngineDown("the engine was stopped") from None  # by `stop`, not by the caller
        finally:
            self._open.discard(task)

    async def count_tokens(self, turns: Sequence[Turn]) -> TokenCount | None:
        """Exact where vLLM serves the model, once the endpoint has been reached; others tell only with an answer."""
        if not self._up or not self._wording.dialect.counts:
            return None
        try:
            total = await self._counted(turns)
            if all(turn.picture is None for turn in turns):
                return TokenCount(total=total, picture=0)
            return TokenCount(total=total, picture=total - await self._counted(_blind(turns)))
        except EndpointError as error:  # it may be switched off, or hidden by what stands before it
            _LOG.debug("%s counts no tokens: status %d", self._endpoint.host, error.status)
            return None

    async def _counted(self, turns: Sequence[Turn]) -> int:
        wording = self._wording
        body = {"model": wording.model, "messages": chat.messages(turns, await self._pictures.of(turns))}
        template = {name: value for name, value in wording.dialect.fields.items() if name.startswith("chat_template")}
        return await self._endpoint.post("/tokenize", body | template, read=chat.counted, max_retries=1)

    def picture_tokens(self, width_px: int, height_px: int) -> int | None:
        """The endpoint alone knows."""
        return None

    async def _generated(self, turns: Sequence[Turn], sampling: Sampling) -> Generation:
        began = time.perf_counter()
        has_picture = any(turn.picture is not None for turn in turns)
        try:
            generation = await self._asked(turns, sampling)
            if has_picture and not self._sees:
                await self._look(turns, sampling, generation)
        except Refused as error:
            if error.status == 404:
                raise self._unavailable(str(error), "see that the endpoint still serves the model") from error
            meant = chat.refused(error, sampling=sampling, has_picture=has_picture)
            if isinstance(meant, PromptTooLong) and not meant.actual:
                meant = await self._measured(turns, sampling) or meant
            raise meant from error
        except (Unauthorised, OutOfQuota) as error:
            raise self._denied(error) from error
        except RateLimited as error:
            if error.others:
                raise RequestFailed(str(error)) from error
            remedy = "wait, lower enrichment.openai.concurrency or raise max_retries, then start the job again"
            raise self._unavailable(str(error), remedy) from error
        except Unreachable as error:
            if error.others:  # not the endpoint but this request, which some proxies cut off for its size
                raise RequestFailed(str(error)) from error
            raise EngineDown(str(error)) from error
        except EndpointError as error:
            raise RequestFailed(str(error)) from error
        return replace(generation, milliseconds=(time.perf_counter() - began) * 1e3)

    async def _asked(self, turns: Sequence[Turn], sampling: Sampling, *, max_retries: int | None = None) -> Generation:
        body = self._wording.body(turns, await self._pictures.of(turns), sampling)
        prompt = _prompt_tokens(turns)
        async with self._budget.spending(expected=prompt + sampling.max_tokens) as spending:
            generation = await self._endpoint.post(
                "chat/completions", body, read=chat.generation, max_retries=max_retries
            )
            told = generation.tokens_in + generation.tokens_out
            spending.used = told or prompt + math.ceil(len(generation.text) / _CHARACTERS_PER_TOKEN)
        return generation

    async def _measured(self, turns: Sequence[Turn], sampling: Sampling) -> PromptTooLong | None:
        """How much too long a prompt is, where the endpoint does not say so by itself but counts."""
        count = await self.count_tokens(turns)
        if count is None or self.context_tokens is None:
            return None
        room = self.context_tokens - sampling.max_tokens
        return PromptTooLong(expected=room, actual=count.total, picture=count.picture) if count.total > room else None

    async def _look(self, turns: Sequence[Turn], sampling: Sampling, seen: Generation) -> None:
        """Once: whether a picture makes a prompt longer. Some endpoints drop what their model cannot see, unsaid."""
        async with self._looking:
            if self._sees:
                return
            unseen = await self._asked(
                _blind(turns), replace(sampling, max_tokens=min(_PROBE_TOKENS, sampling.max_tokens))
            )
            if 0 < seen.tokens_in <= unseen.tokens_in:
                raise PictureRejected(
                    f"{self._endpoint.host} drops pictures: the model reads {seen.tokens_in} tokens with the picture "
                    f"and {unseen.tokens_in} without it. Where it only does not count them, set "
                    "enrichment.openai.check_vision = false"
                )
            self._sees = True

    # At the start

    async def _listed(self) -> Listed:
        """What the endpoint tells of its models; nothing where it has no such list.

        Raises:
            ServiceError: DESCRIBER_UNAVAILABLE.
        """
        try:
            return await self._endpoint.get(
                "models", read=lambda answer: chat.listed(answer, self.model), max_retries=self._patience
            )
        except Unauthorised as error:
            if error.status == 403:  # a key may be for chats only
                return Listed()
            raise self._denied(error) from error
        except Refused as error:
            if 300 <= error.status < 400:
                raise self._unavailable(str(error), "set enrichment.openai.base_url") from error
            return Listed()  # not every endpoint has one
        except EndpointError as error:
            raise self._unavailable(str(error), _REACH) from error

    async def _settle(self, told: Listed) -> None:
        """Finds out how the endpoint wants to be asked.

        Raises:
            ServiceError: DESCRIBER_UNAVAILABLE.
        """
        if told.sees is False:
            raise self._unavailable(
                f"{self._endpoint.host} says that it takes no pictures",
                "choose a multimodal model (enrichment.mllm.model)",
            )
        self.context_tokens = told.context_tokens
        if told.owner:
            self.version = f"{await self._server(told.owner)} at {self._endpoint.host}"
        self._wording = replace(self._wording, dialect=chat.dialect(told.owner))
        wanted = self._mllm
        sampling = Sampling(
            max_tokens=_PROBE_TOKENS,
            temperature=wanted.temperature,
            top_p=wanted.top_p,
            repetition_penalty=wanted.repetition_penalty,
            seed=wanted.seed,
        )
        try:
            try:
                await self._asked(_PROBE, sampling, max_retries=self._patience)
            except Refused as error:
                if not chat.wants_completion_tokens(error):
                    raise
                self._wording = replace(self._wording, max_tokens="max_completion_tokens")
                await self._asked(_PROBE, sampling, max_retries=self._patience)
        except (Unauthorised, OutOfQuota) as error:
            raise self._denied(error) from error
        except Refused as error:
            raise self._refused_at_start(error, told) from error
        except RequestFailed as error:
            raise self._unavailable(str(error), "choose another model (enrichment.mllm.model)") from error
        except EndpointError as error:
            raise self._unavailable(str(error), _REACH) from error

    async def _server(self, owner: str) -> str:
        """The server's name, with its version where it tells: vLLM does, beside the API."""
        if owner != "vllm":
            return owner
        try:
            version = await self._endpoint.get("/version", read=_version, max_retries=0)
        except EndpointError:
            return owner
        return f"{owner} {version}"

    def _refused_at_start(self, error: Refused, told: Listed) -> ServiceError:
        named = chat.refused_field(error)
        if named:
            return self._unavailable(
                str(error),
                f'leave the field out by enrichment.openai.omit = ["{named}"], or set enrichment.mllm.{named} to what '
                "it takes",
            )
        if told.names and not told.found:
            known = ", ".join(told.names[:_NAMES_IN_MESSAGE]) + (" …" if len(told.names) > _NAMES_IN_MESSAGE else "")
            return self._unavailable(str(error), f"set enrichment.mllm.model to one that it lists: {known}")
        if error.status in (404, 405):
            return self._unavailable(
                str(error),
                "see that enrichment.openai.base_url ends in the API's version, such as /v1, and that the "
                "model has that name there",
            )
        return self._unavailable(str(error), "see enrichment.openai and enrichment.mllm.model")

    def _denied(self, error: EndpointError) -> ServiceError:
        if isinstance(error, OutOfQuota):
            return self._unavailable(str(error), "see to the account's credit, then start the job again")
        variable = self._settings.api_key_env
        if self._endpoint.has_key:
            return self._unavailable(str(error), f"the enricher's key in {variable} is wrong or lacks a permission")
        return self._unavailable(str(error), f"give the enricher a key in the environment variable {variable}")

    def _unavailable(self, why: str, remedy: str) -> ServiceError:
        return ServiceError(
            "DESCRIBER_UNAVAILABLE",
            f"the describer openai cannot work with the model {self.model}: {why}; {remedy}",
            describer=NAME,
            model=self.model,
        )

    @property
    def _patience(self) -> int | None:
        """Retries while starting: those of every call once the endpoint has been there."""
        return None if self._was_up else min(_PROBE_RETRIES, self._settings.max_retries)


_REACH = "see that it runs and that enrichment.openai.base_url is its address"


def _blind(turns: Sequence[Turn]) -> list[Turn]:
    return [replace(turn, picture=None) for turn in turns]


def _prompt_tokens(turns: Sequence[Turn]) -> int:
    """Tokens of a prompt, rather too many than too few."""
    characters = sum(len(turn.text) for turn in turns)
    pixels = sum(turn.picture.width * turn.picture.height for turn in turns if turn.picture is not None)
    return math.ceil(characters / _CHARACTERS_PER_TOKEN) + math.ceil(pixels / _PIXELS_PER_TOKEN) + 16 * len(turns)


def _version(answer: Any) -> str:
    if not isinstance(answer, Mapping) or not isinstance(answer.get("version"), str):
        raise Malformed("JSON without a version")
    return str(answer["version"])[:40]
