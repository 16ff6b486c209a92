"""The portable engine: transformers on CUDA, MPS or a CPU. The reference that others are compared with.

Calls that come in together run as one batch with left padding. Each row keeps its own sampling, and its tokens do not
depend on what else is in the batch (up to rounding).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import metadata

from dmesr_server.config import EnrichmentConfig

from . import model_files, transformers_model
from .base import EngineDown, Generation, RequestFailed, Sampling, TokenCount, Turn
from .loading import Loading
from .transformers_model import LoadedModel, Outcome, Prompt

NAME = "transformers"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Call:
    """A call of `generate` that waits for its batch."""

    prompt: Prompt
    answer: asyncio.Future[Generation]


class TransformersEngine:
    """Runs any image-text-to-text model of transformers."""

    name = NAME
    is_mllm = True
    concurrency = 2  # one call's batch runs while the next one's pictures are made ready

    def __init__(self, config: EnrichmentConfig):
        """Finds the model's files; loads nothing.

        Raises:
            ServiceError: DESCRIBER_UNAVAILABLE when there is no such model.
        """
        self._config = config
        self._files = model_files.find(config.mllm)
        self._starting = asyncio.Lock()
        self._loading: Loading[LoadedModel] = Loading()
        self._loaded: LoadedModel | None = None
        self._waiting: list[_Call] = []
        self._arrived = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self.model = self._files.name
        self.revision = self._files.revision
        self.version = f"transformers {metadata.version('transformers')}"
        self.context_tokens = self._files.context_tokens
        self.items_per_call = config.transformers.batch_size

    def recipe_fields(self) -> Mapping[str, object]:
        """Precision; there is no quantisation beyond what the weights bring."""
        return {"dtype": self._config.transformers.dtype, "quantization": None}

    async def start(self) -> None:
        """Loads the model in a thread."""
        async with self._starting:
            if self._loaded is not None:
                return
            began = time.monotonic()
            load = partial(transformers_model.load, self._files, self._config, context_tokens=self.context_tokens)
            self._loaded = await self._loading.run(load, discard=lambda loaded: loaded.release())
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="transformers")
            self._serving = asyncio.create_task(self._serve(self._loaded, self._thread))
            took = time.monotonic() - began
            _LOG.info("%s runs %s on %s, loaded in %.0f s", self.version, self.model, self._loaded.device, took)

    async def stop(self) -> None:
        """Lets go of the model. Open calls end with `EngineDown`, and so does a start that is under way."""
        self._loading.abandon()
        async with self._starting:
            serving, self._serving = self._serving, None
            thread, self._thread = self._thread, None
            loaded, self._loaded = self._loaded, None
            if serving is not None:
                serving.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await serving
            waiting, self._waiting = self._waiting, []
            for call in waiting:
                _settle(call, EngineDown("the engine was stopped"))
            if thread is not None and loaded is not None:
                await asyncio.to_thread(thread.shutdown)
                loaded.release()

    async def generate(self, turns: Sequence[Turn], *, sampling: Sampling) -> Generation:
        """One answer, from a batch with whatever else waits."""
        if self._loaded is None:
            raise EngineDown("the engine is not running")
        prompt = Prompt(turns, sampling, began=time.perf_counter())
        call = _Call(prompt, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        self._arrived.set()
        try:
            return await call.answer
        finally:
            prompt.given_up.set()  # where the caller was cancelled its row ends at the next token

    async def count_tokens(self, turns: Sequence[Turn]) -> TokenCount | None:
        """Exact, but only while the model is loaded."""
        return None if self._loaded is None else await asyncio.to_thread(self._loaded.count, turns)

    def picture_tokens(self, width_px: int, height_px: int) -> int | None:
        """By how models of the Qwen2-VL kind cut pictures; None for others."""
        patches = self._files.patches(max_pixels=self._config.mllm.max_pixels)
        return None if patches is None else patches.tokens(width_px, height_px)

    async def _serve(self, loaded: LoadedModel, thread: ThreadPoolExecutor) -> None:
        """Gathers calls into batches and runs them, one after the other."""
        batch: list[_Call] = []
        try:
            while True:
                await self._arrived.wait()
                if len(self._waiting) < self.items_per_call:
                    await asyncio.sleep(self._config.transformers.linger_seconds)
                batch = self._next_batch()
                if not batch:  # every caller has gone
                    continue
                outcomes: Sequence[Outcome]
                try:
                    outcomes = await asyncio.get_running_loop().run_in_executor(
                        thread, loaded.run, [call.prompt for call in batch]
                    )
                except Exception as error:  # a fault of the model's code must not leave callers waiting
                    _LOG.exception("a batch of %d failed", len(batch))
                    outcomes = [RequestFailed(f"{type(error).__name__}: {error}") for _ in batch]
                for call, outcome in zip(batch, outcomes, strict=True):
                    _settle(call, outcome)
        except asyncio.CancelledError:
            for call in batch:
                call.prompt.given_up.set()
                _settle(call, EngineDown("the engine was stopped"))
            raise

    def _next_batch(self) -> list[_Call]:
        """Those that wait longest, all with or all without a picture: processors take no mixture."""
        waiting = [call for call in self._waiting if not call.answer.done()]
        alike = [call for call in waiting if call.prompt.has_picture == waiting[0].prompt.has_picture]
        batch = alike[: self.items_per_call]
        self._waiting = [call for call in waiting if call not in batch]
        if not self._waiting:
            self._arrived.clear()
        return batch


def _settle(call: _Call, outcome: Outcome) -> None:
    if call.answer.done():
        return
    if isinstance(outcome, Generation):
        call.answer.set_result(outcome)
    else:
        call.answer.set_exception(outcome)
