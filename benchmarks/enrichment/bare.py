"""The bare vLLM engine, and what our pipeline asks of it.

`Recorded` stands between describer and engine and writes down every call with its answer. `asked_bare` puts the same
calls to the engine with nothing of ours around them.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]
from dmesr_server.enrichment.engines import Generation, Sampling, TokenCount, Turn
from dmesr_server.enrichment.engines.vllm import VllmEngine


@dataclass(frozen=True)
class Call:
    """One call of the engine and its answer."""

    turns: tuple[Turn, ...]
    sampling: Sampling
    generation: Generation


class Recorded:
    """A running vLLM engine whose calls are written down."""

    is_mllm = True

    def __init__(self, engine: VllmEngine):
        self.inner = engine
        self.calls: list[Call] = []
        self.name, self.model, self.revision, self.version = engine.name, engine.model, engine.revision, engine.version
        self.concurrency, self.items_per_call = engine.concurrency, engine.items_per_call
        self.context_tokens = engine.context_tokens

    def recipe_fields(self) -> Mapping[str, Any]:
        return self.inner.recipe_fields()

    async def start(self) -> None:
        await self.inner.start()

    async def stop(self) -> None:
        await self.inner.stop()

    async def generate(self, turns: Sequence[Turn], *, sampling: Sampling) -> Generation:
        generation = await self.inner.generate(turns, sampling=sampling)
        self.calls.append(Call(tuple(turns), sampling, generation))
        return generation

    async def count_tokens(self, turns: Sequence[Turn]) -> TokenCount | None:
        return await self.inner.count_tokens(turns)

    def picture_tokens(self, width_px: int, height_px: int) -> int | None:
        return self.inner.picture_tokens(width_px, height_px)


@dataclass(frozen=True)
class Took:
    """What a run of calls took."""

    calls: int
    tokens_in: int
    tokens_out: int
    tokens_cached: int
    seconds: float  # by the clock
    cpu_seconds: float  # of this process and the engine's

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_out / self.seconds

    @property
    def cpu_per_1000_tokens(self) -> float:
        """Seconds of all cores for 1,000 tokens written: tells less of what else the machine was doing."""
        return self.cpu_seconds / self.tokens_out * 1e3

    @property
    def cached_share(self) -> float:
        """Of the tokens that were read."""
        return self.tokens_cached / self.tokens_in if self.tokens_in else 0.0


class Clock:
    """Seconds since it was made, by the clock and of cores."""

    def __init__(self) -> None:
        self._cpu = _cpu_seconds()
        self._began = time.perf_counter()

    def read(self) -> tuple[float, float]:
        seconds = time.perf_counter() - self._began
        return seconds, _cpu_seconds() - self._cpu


def took(calls: Sequence[Call], *, seconds: float, cpu_seconds: float) -> Took:
    """The sums of recorded calls."""
    answers = [call.generation for call in calls]
    return Took(
        calls=len(answers),
        tokens_in=sum(answer.tokens_in for answer in answers),
        tokens_out=sum(answer.tokens_out for answer in answers),
        tokens_cached=sum(answer.tokens_cached for answer in answers),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
    )


async def forget(engine: VllmEngine) -> None:
    """Empties the engine's caches of prompts and pictures: every run begins with the same nothing."""
    running = engine._running
    await running.reset_mm_cache()
    await running.reset_encoder_cache()
    await running.reset_prefix_cache()


async def asked_bare(engine: VllmEngine, calls: Sequence[Call], *, in_flight: int = 0) -> Took:
    """Puts calls to vLLM's AsyncLLM: its renderer, its generate, and nothing else.

    Args:
        engine: Runs the model.
        calls: What to ask; pictures are decoded already.
        in_flight: At most so many side by side; 0 puts all of them at once.
    """
    from vllm import SamplingParams
    from vllm.renderers import ChatParams
    from vllm.sampling_params import RequestOutputKind

    running = engine._running
    chat = ChatParams(chat_template_kwargs={"add_generation_prompt": True})

    gate = asyncio.Semaphore(in_flight or len(calls))

    async def one(call: Call) -> Any:
        async with gate:
            return await answered(call)

    async def answered(call: Call) -> Any:
        _, (prompt,) = await running.renderer.render_chat_async([[_message(turn) for turn in call.turns]], chat)
        wanted = call.sampling
        parameters = SamplingParams(
            temperature=wanted.temperature,
            top_p=wanted.top_p,
            repetition_penalty=wanted.repetition_penalty,
            max_tokens=wanted.max_tokens,
            seed=wanted.seed,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        output: Any = None
        async for told in running.generate(prompt, parameters, request_id=uuid.uuid4().hex):
            output = told
        if output.outputs[0].finish_reason not in ("stop", "length"):
            raise RuntimeError(f"vLLM ended a call with {output.outputs[0].finish_reason}")
        return output

    clock = Clock()
    outputs = await asyncio.gather(*(one(call) for call in calls))
    seconds, cpu_seconds = clock.read()
    return Took(
        calls=len(outputs),
        tokens_in=sum(len(output.prompt_token_ids) for output in outputs),
        tokens_out=sum(len(output.outputs[0].token_ids) for output in outputs),
        tokens_cached=sum(output.num_cached_tokens or 0 for output in outputs),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
    )


def _cpu_seconds() -> float:
    here = psutil.Process()
    processes = [here, *here.children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _message(turn: Turn) -> dict[str, Any]:
    if turn.picture is None:
        return {"role": turn.role, "content": turn.text}
    parts = [{"type": "image_pil", "image_pil": turn.picture}, {"type": "text", "text": turn.text}]
    return {"role": turn.role, "content": parts}
