"""Keeps an engine alive: starts it when it is first needed, restarts it when it dies, unloads it when nobody asks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from dmesr_server.config import MllmConfig
from dmesr_server.errors import ServiceError
from dmesr_server.telemetry import traces

from .base import Engine, EngineDown, Generation, Sampling, TokenCount, Turn

_LOG = logging.getLogger(__name__)
_MAX_BACK_OFF_SECONDS = 300.0


class SupervisedEngine:
    """An engine that may be asked at any time.

    A call whose engine dies ends with `EngineDown`; the calls after it wait for the restart. When the engine dies, or
    does not start, more often than `restarts` times with nothing generated in between, calls end with a `ServiceError`.
    """

    def __init__(self, engine: Engine, config: MllmConfig):
        """Wraps an engine; starts nothing.

        Args:
            engine: What is kept alive.
            config: Restarts, back-off and idle time.
        """
        self.engine = engine
        self._config = config
        self._up = False
        self._lives = 0  # times that it was started
        self._failures = 0  # deaths and failed restarts since something was generated last
        self._active = 0
        self._idle_since = time.monotonic()
        self._bringing_up: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the engine when it is not up. A caller that is cancelled leaves the start to the others.

        Raises:
            ServiceError: DESCRIBER_UNAVAILABLE when it does not start, or has died too often.
        """
        if self._up:
            return
        if self._bringing_up is None:
            self._bringing_up = asyncio.create_task(self._bring_up())
            self._bringing_up.add_done_callback(self._brought_up)
        bringing_up = self._bringing_up
        try:
            await asyncio.shield(bringing_up)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if bringing_up.cancelled() and caller is not None and not caller.cancelling():
                raise EngineDown("the engine was stopped") from None
            raise

    async def stop(self) -> None:
        """Unloads the engine; the next call starts it again."""
        tasks = [task for task in (self._watching, self._bringing_up) if task is not None]
        for task in tasks:
            task.cancel()
        await self.engine.stop()  # also ends a start that is under way
        if tasks:
            await asyncio.wait(tasks)
        self._watching = None
        self._up = False
        self._failures = 0

    async def generate(self, turns: Sequence[Turn], *, sampling: Sampling) -> Generation:
        """As :meth:`Engine.generate`, from an engine that is started first where need be.

        Raises:
            EngineError: As the engine; `EngineDown` where it died on this call.
            ServiceError: DESCRIBER_UNAVAILABLE.
        """
        self._active += 1
        try:
            await self.start()
            life = self._lives
            try:
                generation = await self.engine.generate(turns, sampling=sampling)
            except EngineDown as error:
                self._died(life, error)
                raise
            self._failures = 0
            return generation
        finally:
            self._active -= 1
            self._idle_since = time.monotonic()

    async def count_tokens(self, turns: Sequence[Turn]) -> TokenCount | None:
        """As :meth:`Engine.count_tokens`."""
        return await self.engine.count_tokens(turns)

    def _died(self, life: int, error: EngineDown) -> None:
        """Notes a death once, however many calls it has ended, and however late they say so."""
        if self._up and life == self._lives:
            self._up = False
            self._failures += 1
            _LOG.warning("the engine %s died: %s", self.engine.name, error)

    async def _bring_up(self) -> None:
        while not self._up:
            if self._failures > self._config.restarts:
                deaths, self._failures = self._failures, 0  # whoever asks next begins anew
                raise self._given_up(deaths)
            if self._failures:
                await self._back_off()
            try:
                with traces.step("start engine", {"gen_ai.request.model": self.engine.model}):
                    await _to_its_end(self.engine.start())
            except EngineDown:
                raise asyncio.CancelledError from None  # it was stopped meanwhile
            except ServiceError as error:
                self._failures += 1
                if not self._lives or self._failures > self._config.restarts:
                    self._failures = 0  # whoever asks next begins anew
                    raise  # what never ran will not run by being asked again at once
                _LOG.warning("the engine %s did not start again: %s", self.engine.name, error.message)
                continue
            self._up = True
            self._lives += 1
            self._idle_since = time.monotonic()
            if self._watching is None and self._config.idle_seconds:
                self._watching = asyncio.create_task(self._unload_when_idle())

    def _brought_up(self, task: asyncio.Task[None]) -> None:
        self._bringing_up = None
        if not task.cancelled():
            task.exception()  # seen, also where every caller has gone

    async def _back_off(self) -> None:
        seconds = min(self._config.restart_seconds * 2 ** (self._failures - 1), _MAX_BACK_OFF_SECONDS)
        _LOG.info("the engine %s is started again in %.1f s", self.engine.name, seconds)
        await self.engine.stop()
        await asyncio.sleep(seconds)

    def _given_up(self, deaths: int) -> ServiceError:
        return ServiceError(
            "DESCRIBER_UNAVAILABLE",
            f"the engine {self.engine.name} died {deaths} times with nothing described in between "
            f"(enrichment.mllm.restarts = {self._config.restarts}); see the enricher's log, then 'enrich retry'",
            describer=self.engine.name,
            deaths=deaths,
        )

    async def _unload_when_idle(self) -> None:
        limit = self._config.idle_seconds
        while self._active or time.monotonic() < self._idle_since + limit:  # noqa: ASYNC110 - time passes, nothing tells
            await asyncio.sleep(limit if self._active else self._idle_since + limit - time.monotonic())
        self._watching = None
        if self._up:
            _LOG.info("the engine %s is unloaded after %.0f s without work", self.engine.name, limit)
            self._up = False
            await _to_its_end(self.engine.stop())


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Awaits what cannot be broken off half-way, such as loading a model; being cancelled waits for its end."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        raise
