"""Runs one job: looks at the items, describes what has changed, encodes it, and writes all of it down.

Four stages run side by side, with bounded queues between them, so that memory does not grow with the catalogue and
encoding overlaps describing:

    survey ──► describe ──► keep (descriptions) ──► encode (vectors)

Whatever is written is named by hashes of what it was made from. So a job that dies at any moment needs no repair: the
next run of it sees what is there and does the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dmesr_server.config import Config
from dmesr_server.errors import ServiceError
from dmesr_server.pictures.decoders import Decoders
from dmesr_server.store import CatalogStore, DescriptionRow, StoredItem
from dmesr_server.telemetry import metrics, traces

from . import planning
from .describing import Described, Describing
from .planning import ItemPlan, Scope
from .progress import Progress
from .routes import ORIGINAL
from .specs import JobSpec, Means
from .writing import Encoding, Fence, Presence, Report, VectorChange

_KEEP_SECONDS = 2.0  # descriptions are written down at least so often: what an MLLM wrote is dear
_QUEUED_BATCHES = 4


class Pipeline:
    """Runs one job. One use only."""

    def __init__(
        self,
        *,
        config: Config,
        catalog: CatalogStore,
        domain: str,
        language: str,
        job_id: str,
        spec: JobSpec,
        means: Means,
        decoders: Decoders,
        progress: Progress,
        fence: Fence,
        report: Report,
    ):
        """Settles what is needed; nothing is read or loaded yet.

        Args:
            config: Batch sizes and limits.
            catalog: The catalog's tables.
            domain: The catalog's.
            language: The catalog's.
            job_id: For provenance.
            spec: What to do.
            means: Describer, encoder and recipe.
            decoders: Decode pictures.
            progress: Counts as it goes.
            fence: Raises LEASE_LOST when somebody else has taken the job; asked before every write.
            report: Keeps the progress in the control database.
        """
        self._config = config
        self._catalog = catalog
        self._domain, self._language = domain, language
        self._job_id = job_id
        self._spec = spec
        self._means = means
        self._decoders = decoders
        self._progress = progress
        self._fence = fence
        self._report = report
        self._vectors = catalog.embeddings(means.recipe.recipe_id)
        self._scope = Scope(
            recipe=means.recipe,
            routes=means.routes,
            generates=means.describer.generates,
            retry_failed=spec.retry_failed,
            job_id=job_id,
        )
        self._presence = Presence(catalog=catalog, vectors=self._vectors, fence=fence)
        self._encoding = Encoding(
            encoder=means.encoder,
            vectors=self._vectors,
            presence=self._presence,
            progress=progress,
            fence=fence,
            report=report,
        )
        window = means.describer.window
        self._todo: asyncio.Queue[list[ItemPlan] | None] = asyncio.Queue(window.calls + 1)
        self._made: asyncio.Queue[list[Described] | None] = asyncio.Queue(_QUEUED_BATCHES * window.calls)
        self._changes: asyncio.Queue[list[VectorChange] | None] = asyncio.Queue(_QUEUED_BATCHES)
        self._pending: list[Described] = []  # described, not written down yet

    async def run(self) -> None:
        """Does the job to its end. When cancelled, keeps the descriptions that have been made and stops.

        Raises:
            ServiceError: LEASE_LOST, DESCRIBER_UNAVAILABLE, ENCODER_UNAVAILABLE, STORE_FULL, STORE_UNAVAILABLE, …
        """
        threads = ThreadPoolExecutor(self._config.enrichment.picture_workers, thread_name_prefix="pictures")
        try:
            async with asyncio.TaskGroup() as stages:
                stages.create_task(self._survey())
                stages.create_task(self._describe(threads))
                stages.create_task(self._keep())
                stages.create_task(self._encoding.run(self._changes))
            await self._presence.confirm()
        except BaseExceptionGroup as group:
            with contextlib.suppress(ServiceError):  # what ended the job is what is told
                await self._keep_rest()
            raise _first(group) from group
        except asyncio.CancelledError:
            await self._keep_rest()
            raise
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            await self._encoding.close()

    # Survey

    async def _survey(self) -> None:
        """Looks at every item; only those that need work go on."""
        await asyncio.to_thread(self._declare)
        item_ids, limit = self._spec.item_ids, self._spec.limit
        total = len(set(item_ids)) if item_ids else await asyncio.to_thread(self._catalog.items.count)
        self._progress.items_total = total
        await self._report(now=True)
        looked_at = 0
        batches = planning.batches(self._catalog, item_ids=item_ids, rows=self._config.enrichment.batch_items)
        while (batch := await asyncio.to_thread(_next, batches)) is not None:
            with traces.step("plan batch", {"dmesr.items": len(batch)}):
                plans = await asyncio.to_thread(planning.plan_batch, batch, catalog=self._catalog, scope=self._scope)
            taken, full = self._within_limit(plans)
            looked_at += len(taken)
            for plan in taken:
                self._progress.planned(plan)
            work = [plan for plan in taken if plan.needs_work]
            if limit and work:
                await self._report(now=True)  # which items were chosen is kept before anything is done for them
            await self._hand_on(work)
            if full:
                break
        self._progress.items_total = looked_at
        for _ in range(self._means.describer.window.calls):
            await self._todo.put(None)

    def _within_limit(self, plans: list[ItemPlan]) -> tuple[list[ItemPlan], bool]:
        """The items that a limit lets in, and whether it is used up.

        A job that was interrupted takes the items that it had chosen before, and counts only those beyond.
        """
        limit = self._spec.limit
        if not limit:
            return plans, False
        taken: list[ItemPlan] = []
        for plan in plans:
            beyond = plan.item.item_id > self._progress.chosen_through
            if beyond and self._progress.chosen >= limit:
                return taken, True
            taken.append(plan)
            if beyond and plan.needs_work:
                self._progress.chosen += 1
                self._progress.chosen_through = plan.item.item_id
        return taken, False

    async def _hand_on(self, work: list[ItemPlan]) -> None:
        ready = [plan for plan in work if not plan.describe]
        asked = [plan for plan in work if plan.describe]
        if work:
            self._encoding.warm_up()
        if ready:
            await self._made.put([Described(plan, (), {}) for plan in ready])
        step = self._means.describer.window.items_per_call
        for start in range(0, len(asked), step):
            await self._todo.put(asked[start : start + step])

    def _declare(self) -> None:
        for source in (ORIGINAL, *self._means.recipe.descriptions):
            self._vectors.declare(source, self._means.encoder.dim)

    # Describe

    async def _describe(self, threads: ThreadPoolExecutor) -> None:
        describing = Describing(
            describer=self._means.describer,
            recipe=self._means.recipe,
            catalog=self._catalog,
            domain=self._domain,
            language=self._language,
            job_id=self._job_id,
            max_picture_pixels=self._config.limits.max_picture_pixels,
            decoders=self._decoders,
            threads=threads,
        )
        async with asyncio.TaskGroup() as calls:
            for _ in range(self._means.describer.window.calls):
                calls.create_task(self._describe_some(describing))
        await self._made.put(None)

    async def _describe_some(self, describing: Describing) -> None:
        """One of the calls that are in flight side by side."""
        while plans := await self._todo.get():
            await self._means.describer.start()
            with self._progress.describing, traces.step("describe batch", {"dmesr.items": len(plans)}) as span:
                described = await describing.describe(plans)
                span.note(_by_route(described))
            await self._made.put(described)

    # Keep

    async def _keep(self) -> None:
        """Writes descriptions down: a batch at a time, or what there is after a while."""
        due = time.monotonic()
        open_ = True
        while open_:
            if not self._pending:
                due = time.monotonic() + _KEEP_SECONDS
            try:
                async with asyncio.timeout(max(0.0, due - time.monotonic()) if self._pending else None):
                    made = await self._made.get()
            except TimeoutError:
                made = []
            if made is None:
                open_ = False
            else:
                self._pending += made
            full = len(self._pending) >= self._config.enrichment.batch_items
            if self._pending and (full or not open_ or time.monotonic() >= due):
                await self._changes.put(await self._keep_pending())
        await self._changes.put(None)

    async def _keep_pending(self) -> list[VectorChange]:
        """Writes the pending descriptions down and says which vectors follow from them."""
        # Rows are either pending or written: a cancellation waits for the write.
        pending, self._pending = self._pending, []
        await _to_the_end(self._write_descriptions(pending))
        changes = []
        for done in pending:
            vectors = dict(done.plan.vectors)
            for row in done.rows:
                vector = done.plan.vector_of(row.route, row.text)
                if vector is not None:
                    vectors[row.route] = vector
            if vectors:
                changes.append(VectorChange(done.plan.item.item_id, vectors))
            else:
                self._progress.items_done += 1
        await self._report()
        return changes

    async def _write_descriptions(self, pending: Sequence[Described]) -> None:
        there = await self._presence.confirm([done.plan.item.item_id for done in pending])
        rows = [row for done in pending for row in done.rows if row.item_id in there]
        drop = [row for done in pending for row in done.plan.drop]
        if rows or drop:
            with traces.step("keep descriptions", {"dmesr.descriptions": len(rows)}):
                await asyncio.to_thread(self._store_descriptions, rows, drop)
            self._presence.wrote(row.item_id for row in rows)
        for done in pending:
            for row in done.rows:
                tally, cost = self._progress.routes[row.route], self._progress.costs[row.route]
                result = done.results.get(row.route)
                metrics.described(
                    route=row.route,
                    reason=(row.failure_reason or "INTERNAL") if result is None else None,
                    tokens_in=0 if result is None else result.tokens_in,
                    tokens_out=0 if result is None else result.tokens_out,
                )
                if result is None:
                    tally.failed += 1
                    continue
                tally.described += 1
                cost.described += 1
                cost.milliseconds += result.milliseconds
                cost.tokens += result.tokens_in + result.tokens_out
                cost.tokens_out += result.tokens_out
                cost.text_bytes += len(result.text.encode())

    def _store_descriptions(self, rows: Sequence[DescriptionRow], drop: Sequence[DescriptionRow]) -> None:
        self._catalog.descriptions.upsert(rows, allowed=self._fence)
        if drop:
            self._fence()
            self._catalog.descriptions.delete_rows(drop)

    async def _keep_rest(self) -> None:
        """Writes down what has been described when the job is stopped: it was paid for."""
        while not self._made.empty():
            self._pending += self._made.get_nowait() or []
        pending, self._pending = self._pending, []
        if pending:
            await self._write_descriptions(pending)


def _by_route(described: Sequence[Described]) -> dict[str, int]:
    """How many descriptions of each route were made, and failed, as a span tells it."""
    counts: Counter[str] = Counter()
    for done in described:
        counts.update(
            f"dmesr.{'described' if row.route in done.results else 'failed'}.{row.route}" for row in done.rows
        )
    return dict(counts)


def _next(batches: Iterator[list[StoredItem]]) -> list[StoredItem] | None:
    return next(batches, None)


async def _to_the_end(work: Awaitable[Any]) -> None:
    """Waits for work that must not be cut in two. A cancellation is raised once it is done."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first; the other stages were only cancelled because of it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
