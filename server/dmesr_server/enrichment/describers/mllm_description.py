"""One item and one route on the way to a text: asks, guards, refines, shortens, and keeps the account."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dmesr_server.config import MllmConfig
from dmesr_server.enrichment import guard, refinement, rendering, shortening
from dmesr_server.enrichment.engines import Generation, PromptTooLong, Sampling, Turn
from dmesr_server.enrichment.engines.supervision import SupervisedEngine
from dmesr_server.enrichment.prompts import ROUNDS, Prompts
from dmesr_server.enrichment.refinement import Refined
from dmesr_server.enrichment.routes import HYBRID
from dmesr_server.enrichment.shortening import Attributes, Shortened

from .base import DescribeRequest, DescriptionResult

_RETRY_TEMPERATURE = 0.7  # another seed changes nothing where the best token is always taken
_RETRY_TOP_P = 0.95
_REVIEW_TOKENS = 160
_SHORTENINGS = 8  # at most: each one asks the engine anew
_SAFETY = 1.05  # on the estimate of what has to go
# Of the attributes, so much goes at least, each time twice as much: engines that stop counting at their limit tell too
# small an excess.
_LEAST_SHARE, _MOST_SHARE = 1 / 8, 1 / 2


class Unusable(Exception):  # noqa: N818 - reads as what happened
    """Every attempt gave a text that the guard refuses; the message is the last one's fault."""


@dataclass(frozen=True)
class Means:
    """What a description is made with."""

    engine: SupervisedEngine
    config: MllmConfig
    prompts: Prompts


@dataclass
class _Account:
    """What a description has cost so far."""

    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    milliseconds: float = 0.0
    retries: int = 0  # of answers that the guard refused

    def add(self, generation: Generation) -> None:
        self.tokens_in += generation.tokens_in
        self.tokens_out += generation.tokens_out
        self.tokens_cached += generation.tokens_cached
        self.milliseconds += generation.milliseconds


class Description:
    """Makes one description. One use only."""

    def __init__(self, means: Means, request: DescribeRequest):
        """Takes up a request."""
        self._engine = means.engine
        self._config = means.config
        self._prompts = means.prompts
        self._request = request
        self._account = _Account()
        self._finish_reason = "stop"  # of the last answer that was taken
        self._sampling = sampling(means.config)  # of the last answer that was taken

    async def made(self) -> DescriptionResult:
        """The description, of attributes that are shortened where the prompt does not fit.

        Raises:
            EngineError: PromptTooLong only where nothing is left to be cut.
            Unusable: No attempt gave a text that can be used.
            ServiceError: DESCRIBER_UNAVAILABLE.
        """
        whole: Attributes = self._request.attributes
        cut: Shortened | None = None
        for time in range(_SHORTENINGS):
            try:
                return await self._described(cut)
            except PromptTooLong as error:
                now = len(rendering.original_text(whole)) if cut is None else cut.characters
                cut = shortening.shortened(whole, characters=now - self._excess(error, cut, now, time))
                if not cut.characters:
                    raise
        return await self._described(cut)

    def opening(self, attributes: Attributes) -> tuple[Turn, ...]:
        """The turns that ask for the description."""
        request = self._request
        return self._prompts.opening(
            request.route,
            attributes=rendering.original_text(attributes),
            picture=request.picture,
            domain=request.domain,
            language=request.language,
            mode=self._config.hybrid_mode,
        )

    async def _described(self, cut: Shortened | None) -> DescriptionResult:
        request, config, account = self._request, self._config, self._account
        opening = self.opening(request.attributes if cut is None else cut.attributes)
        text = await self._text(opening)
        details: dict[str, Any] = {}
        stop_reason, rounds = self._finish_reason, 0
        if request.route == HYBRID and config.hybrid_mode == ROUNDS and config.max_rounds:
            refined = await self._refined(opening, text)
            text, rounds, stop_reason = refined.text, refined.rounds, refined.stop_reason
            details["refinement"] = {"draft_words": refined.draft_words, "new_words": list(refined.new_words)}
        if account.retries:
            details["retries"] = account.retries
        if cut is not None:
            before = len(rendering.original_text(request.attributes))
            details["shortened"] = dict(cut.record(characters_before=before))
        return DescriptionResult(
            text=text,
            milliseconds=account.milliseconds,
            rounds=rounds,
            stop_reason=stop_reason,
            tokens_in=account.tokens_in,
            tokens_out=account.tokens_out,
            tokens_cached=account.tokens_cached,
            sampling={**stated(self._sampling), **details},
        )

    async def _refined(self, opening: Sequence[Turn], draft: str) -> Refined:
        return await refinement.refine(
            opening=opening,
            draft=draft,
            prompts=self._prompts,
            domain=self._request.domain,
            language=self._request.language,
            max_rounds=self._config.max_rounds,
            ask_review=self._points,
            ask_description=self._text_or_none,
        )

    async def _points(self, turns: Sequence[Turn]) -> str:
        answer = await self._generated(turns, sampling(self._config, max_tokens=_REVIEW_TOKENS))
        return guard.points(answer.text)

    async def _text_or_none(self, turns: Sequence[Turn]) -> str | None:
        try:
            return await self._text(turns)
        except Unusable:
            return None

    async def _text(self, turns: Sequence[Turn]) -> str:
        """A text that the guard lets through.

        Raises:
            Unusable: No attempt gave one.
        """
        why = ""
        for attempt in range(self._config.attempts):
            chosen = sampling(self._config, attempt=attempt)
            answer = await self._generated(turns, chosen)
            text = guard.clean(answer.text)
            if answer.finish_reason == "length":
                text = guard.whole_sentences(text)
            why = guard.problem(text) or ""
            if not why:
                self._finish_reason, self._sampling = answer.finish_reason, chosen
                return text
            self._account.retries += 1
        raise Unusable(why)

    async def _generated(self, turns: Sequence[Turn], chosen: Sampling) -> Generation:
        generation = await self._engine.generate(turns, sampling=chosen)
        self._account.add(generation)
        return generation

    def _excess(self, error: PromptTooLong, cut: Shortened | None, now: int, time: int) -> int:
        """Characters of the attributes that have to go, of those that there are now."""
        least = max(16, math.ceil(now * min(_MOST_SHARE, _LEAST_SHARE * 2.0**time)))
        if not error.actual or not error.expected:
            return max(least, now // 2)
        turns = self.opening(self._request.attributes if cut is None else cut.attributes)
        written = sum(len(turn.text) for turn in turns)
        characters_per_token = written / max(1, error.actual - error.picture)
        return max(least, math.ceil((error.actual - error.expected) * characters_per_token * _SAFETY))


def sampling(config: MllmConfig, *, max_tokens: int | None = None, attempt: int = 0) -> Sampling:
    """How an answer is drawn.

    Args:
        config: What is configured.
        max_tokens: Those of a description where None.
        attempt: Later ones take another seed, and draw where the first one took the best token.
    """
    return Sampling(
        max_tokens=max_tokens or config.max_tokens,
        temperature=max(config.temperature, _RETRY_TEMPERATURE) if attempt else config.temperature,
        top_p=min(config.top_p, _RETRY_TOP_P) if attempt else config.top_p,
        repetition_penalty=config.repetition_penalty,
        seed=config.seed + attempt,
    )


def stated(chosen: Sampling) -> dict[str, Any]:
    """Sampling as it stands in recipes and provenance."""
    return {
        "temperature": chosen.temperature,
        "top_p": chosen.top_p,
        "max_tokens": chosen.max_tokens,
        "repetition_penalty": chosen.repetition_penalty,
        "seed": chosen.seed,
    }
