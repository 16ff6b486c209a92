"""Enrichment that starts by itself after an upsert: one job that waits is enough, whatever is written meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict

from dmesr_server.api.working import in_thread
from dmesr_server.config import Config
from dmesr_server.control import Control
from dmesr_server.enrichment import estimating, jobs
from dmesr_server.enrichment.specs import JobSpec
from dmesr_server.errors import ServiceError
from dmesr_server.store import Store

_LOG = logging.getLogger(__name__)


class AutoEnrichment:
    """Sees to it that a job is waiting after every change."""

    def __init__(self, *, config: Config, store: Store, control: Control):
        self._config = config
        self._store = store
        self._control = control
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._asked: dict[str, int] = defaultdict(int)
        self._seen: dict[str, int] = defaultdict(int)

    async def ensure(self, catalog: str) -> None:
        """Returns once a job is waiting that will see everything written before this call. Never fails an upsert."""
        if not self._config.enrichment.auto:
            return
        self._asked[catalog] += 1
        mine = self._asked[catalog]
        async with self._locks[catalog]:
            if self._seen[catalog] >= mine:
                return  # whoever stood before us in the line looked after our change too
            now = self._asked[catalog]
            try:
                await in_thread(self._start, catalog)
            except ServiceError as error:
                _LOG.warning("automatic enrichment of %s did not start: %s", catalog, error.message)
                return
            self._seen[catalog] = now

    def has_work(self, catalog: str) -> bool:
        """True when an item of the catalog lacks a description or a vector. Blocks while it looks at every item."""
        found = estimating.estimate(
            control=self._control,
            config=self._config,
            catalog=self._store.catalog(catalog),
            name=catalog,
            spec=JobSpec(),
        )
        return any(work.to_describe or work.to_encode for work in found.routes)

    def _start(self, catalog: str) -> None:
        jobs.ensure_auto_job(control=self._control, store=self._store, config=self._config, catalog=catalog)
