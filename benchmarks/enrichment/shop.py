"""Whole jobs in this process, as the enricher runs them: claimed by a lease, fenced, reported, kept in a real store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from dmesr_server.config import Config, load
from dmesr_server.control import Control, JobRow, JobState
from dmesr_server.enrichment import recipes
from dmesr_server.enrichment.describers import Describer
from dmesr_server.enrichment.encoders import Encoder
from dmesr_server.enrichment.routes import ROUTES
from dmesr_server.enrichment.running import RunningJob
from dmesr_server.enrichment.specs import JobSpec, Means
from dmesr_server.pictures.decoders import Decoders
from dmesr_server.store import CatalogStore, DescriptionRow, Store

from . import catalogue
from .catalogue import Listing


@dataclass(frozen=True)
class Ran:
    """A job that was run to its end."""

    job: JobRow
    catalog: CatalogStore
    recipe_ids: tuple[str, ...]  # of the descriptions
    seconds: float  # by the clock, from the claim to the end

    def rows(self) -> list[DescriptionRow]:
        """The descriptions, failures included."""
        item_ids = [item.item_id for batch in self.catalog.items.iterate() for item in batch]
        return self.catalog.descriptions.get(item_ids, self.recipe_ids)


class Shop:
    """A store and a control database in a folder. Every job gets a catalogue of its own: it finds no work done."""

    def __init__(self, folder: Path, *, domain: str):
        self.config: Config = load(flags={"store.uri": str(folder)})
        self.store = Store(uri=self.config.store.uri)
        self.control = Control(self.config.store.resolved_control_url)
        self.control.migrate()
        self._domain = domain
        self._catalogs = 0
        self._heart = ThreadPoolExecutor(1)
        self._decoders = Decoders(
            config=self.config.pictures.decoding,
            workers=self.config.enrichment.picture_workers,
        )

    def __enter__(self) -> Shop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._heart.shutdown()
        self._decoders.close()
        self.control.close()
        self.store.close()

    async def run(
        self,
        listings: Sequence[Listing],
        *,
        describer: Describer,
        encoder: Encoder,
        routes: tuple[str, ...] = ROUTES,
    ) -> Ran:
        """Stores items, then runs a job over them; only the job is timed.

        Raises:
            RuntimeError: The job did not succeed.
        """
        self._catalogs += 1
        name = f"catalog-{self._catalogs}"
        row = self.control.catalogs.create(name, self._domain)
        catalog = self.store.catalog(name)
        await asyncio.to_thread(catalogue.store, listings, catalog)
        recipe = recipes.make(describer=describer, encoder=encoder, domain=row.domain, language=row.language)
        recipe.save(self.control, name)
        spec = JobSpec(routes=routes, describer=describer.name)
        self.control.jobs.create(name, spec.to_json(), recipe.recipe_id, describer.name, encoder.name)
        began = time.perf_counter()
        claimed = self.control.jobs.claim("benchmark", self.config.enrichment.lease_seconds)
        assert claimed is not None
        await RunningJob(
            control=self.control,
            store=self.store,
            config=self.config,
            claimed=claimed,
            catalog=row,
            means=Means(describer=describer, encoder=encoder, encoder_name="null", recipe=recipe, routes=routes),
            decoders=self._decoders,
            stopping=asyncio.Event(),
            heart=self._heart,
        ).run()
        seconds = time.perf_counter() - began
        job = self.control.jobs.get(claimed.job.job_id)
        if job.state is not JobState.SUCCEEDED:
            raise RuntimeError(f"the job ended as {job.state}: {job.problem}")
        ids = tuple(recipe.descriptions[route].recipe_id for route in routes)
        return Ran(job=job, catalog=catalog, recipe_ids=ids, seconds=seconds)
