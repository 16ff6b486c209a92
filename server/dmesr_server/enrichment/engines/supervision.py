"""Keeps an engine alive: starts it when it is first needed, restarts it when it dies, unloads it when nobody asks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from dmesr_server.config import MllmConfig
from dmesr_server.errors import ServiceError

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
        self._lock = asyncio.Lock()
        self._up = False
        self._started_before = False
        self._failures = 0  # deaths and failed restarts since something was generated last
        self._active = 0
        self._idle_since = time.monotonic()
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the engine when it is not up.

        Raises:
            ServiceError: DESCRIBER_UNAVAILABLE when it does not start, or has died too often.
        """
        async with self._lock:
            while not self._up:
                if self._failures > self._config.restarts:
                    raise self._given_up()
                if self._failures:
                    await self._back_off()
                try:
                    await self.engine.start()
                except ServiceError as error:
                    if not self._started_before:
                        raise  # what never ran will not run by being asked again
                    self._failures += 1
                    _LOG.warning("the engine %s did not start again: %s", self.engine.name, error.message)
                    if self._failures > self._config.restarts:
                        raise
                    continue
                self._up = self._started_before = True
                self._idle_since = time.monotonic()
                if self._watching is None and self._config.idle_seconds:
                    self._watching = asyncio.create_task(self._unload_when_idle())

    async def stop(self) -> None:
        """Unloads the engine; the next call starts it again."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.wait([watching])
        async with self._lock:
            self._up = False
            self._failures = 0
            await self.engine.stop()

    async def generate(self, turns: Sequence[Turn], *, sampling: Sampling) -> Generation:
        """As :meth:`Engine.generate`, from an engine that is started first where need be.

        Raises:
            EngineError: As the engine; `EngineDown` where it died on this call.
            ServiceError: DESCRIBER_UNAVAILABLE.
        """
        self._active += 1
        try:
            await self.start()
            try:
                generation = await self.engine.generate(turns, sampling=sampling)
            except EngineDown as error:
                self._died(error)
                raise
            self._failures = 0
            return generation
        finally:
            self._active -= 1
            self._idle_since = time.monotonic()

    async def count_tokens(self, turns: Sequence[Turn]) -> TokenCount | None:
        """As :meth:`Engine.count_tokens`."""
        return await self.engine.count_tokens(turns)

    def _died(self, error: EngineDown) -> None:
        """Notes a death once, however many calls it has ended."""
        if self._up:
            self._up = False
            self._failures += 1
            _LOG.warning("the engine %s died: %s", self.engine.name, error)

    async def _back_off(self) -> None:
        seconds = min(self._config.restart_seconds * 2 ** (self._failures - 1), _MAX_BACK_OFF_SECONDS)
        _LOG.info("the engine %s is started again in %.1f s", self.engine.name, seconds)
        await self.engine.stop()
        await asyncio.sleep(seconds)

    def _given_up(self) -> ServiceError:
        return ServiceError(
            "DESCRIBER_UNAVAILABLE",
            f"the engine {self.engine.name} died {self._failures} times with nothing described in between "
            f"(enrichment.mllm.restarts = {self._config.restarts}); see the enricher's log, then 'enrich retry'",
            describer=self.engine.name,
            deaths=self._failures,
        )

    async def _unload_when_idle(self) -> None:
        limit = self._config.idle_seconds
        while True:
            await asyncio.sleep(max(0.05, self._idle_since + limit - time.monotonic()))
            if self._active or time.monotonic() < self._idle_since + limit:
                continue
            async with self._lock:
                if self._up and not self._active:
                    _LOG.info("the engine %s is unloaded after %.0f s without work", self.engine.name, limit)
                    self._up = False
                    await self.engine.stop()
            self._watching = None
            return
