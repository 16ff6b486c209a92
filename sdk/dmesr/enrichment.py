"""Enrichment: jobs that describe items and encode the descriptions, and the descriptions themselves."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import aclosing

from dmesr.arguments import id_list, one_id, positive
from dmesr.bridge import EventLoopThread
from dmesr.descriptions import (
    Description,
    Descriptions,
    ImportedDescription,
    list_all,
    read_descriptions,
    write_descriptions,
    write_edit,
    write_withdrawal,
)
from dmesr.enrichment_stats import EnrichmentStats, read_enrichment_stats
from dmesr.estimates import ESTIMATE, Estimate, estimate_from_wire
from dmesr.job_status import status_from_wire
from dmesr.jobs import GET, AsyncJob, Job
from dmesr.previews import PromptPreview, read_preview
from dmesr.rows import UpsertSummary
from dmesr.transport import Rpc, Transport
from dmesr.v1 import enrichment_pb2

# These carry a request id, so the server makes one job of however many times they arrive.
START = Rpc(
    "EnrichmentService/StartJob", enrichment_pb2.StartJobRequest, enrichment_pb2.StartJobResponse, idempotent=True
)
RETRY = Rpc(
    "EnrichmentService/RetryJob", enrichment_pb2.RetryJobRequest, enrichment_pb2.RetryJobResponse, idempotent=True
)
LIST = Rpc(
    "EnrichmentService/ListJobs", enrichment_pb2.ListJobsRequest, enrichment_pb2.ListJobsResponse, idempotent=True
)
_JOBS_PER_PAGE = 100
_ITEMS_PER_PAGE = 500  # whose descriptions come in one answer


def _spec(
    *,
    recipe: str,
    routes: Iterable[str] | None,
    item_ids: Iterable[str] | None,
    limit: int | None,
    describer: str | None,
    encoder: str | None,
    retry_failed: bool,
) -> enrichment_pb2.JobSpec:
    return enrichment_pb2.JobSpec(
        recipe=recipe,
        routes=() if routes is None else id_list(routes, name="routes", when_empty="pass None for all routes"),
        item_ids=() if item_ids is None else id_list(item_ids, name="item_ids", when_empty="pass None for all items"),
        limit=0 if limit is None else positive(limit, name="limit"),
        describer=describer or "",
        encoder=encoder or "",
        retry_failed=retry_failed,
    )


class AsyncEnrichment:
    """Enrichment of one catalog, for coroutines. See :class:`Enrichment` for what each call does."""

    def __init__(self, transport: Transport, catalog: str) -> None:
        self._transport = transport
        self._catalog = catalog

    async def start(
        self,
        *,
        recipe: str = "default",
        routes: Iterable[str] | None = None,
        item_ids: Iterable[str] | None = None,
        limit: int | None = None,
        describer: str | None = None,
        encoder: str | None = None,
        retry_failed: bool = False,
        request_id: str | None = None,
    ) -> AsyncJob:
        """Starts a job."""
        spec = _spec(
            recipe=recipe,
            routes=routes,
            item_ids=item_ids,
            limit=limit,
            describer=describer,
            encoder=encoder,
            retry_failed=retry_failed,
        )
        answer = await self._transport.unary(
            START,
            enrichment_pb2.StartJobRequest(
                catalog=self._catalog, spec=spec, request_id=request_id or str(uuid.uuid4())
            ),
        )
        return AsyncJob(status_from_wire(answer.job), self._transport)

    async def estimate(
        self,
        *,
        recipe: str = "default",
        routes: Iterable[str] | None = None,
        item_ids: Iterable[str] | None = None,
        limit: int | None = None,
        describer: str | None = None,
        encoder: str | None = None,
        retry_failed: bool = False,
    ) -> Estimate:
        """Tells what a job with these settings would do and cost."""
        spec = _spec(
            recipe=recipe,
            routes=routes,
            item_ids=item_ids,
            limit=limit,
            describer=describer,
            encoder=encoder,
            retry_failed=retry_failed,
        )
        answer = await self._transport.unary(
            ESTIMATE, enrichment_pb2.EstimateJobRequest(catalog=self._catalog, spec=spec)
        )
        return estimate_from_wire(answer)

    async def get(self, job_id: str) -> AsyncJob:
        """Finds a job by its id."""
        request = enrichment_pb2.GetJobRequest(job_id=one_id(job_id, name="job_id"))
        return AsyncJob(status_from_wire((await self._transport.unary(GET, request)).job), self._transport)

    async def list(self) -> AsyncIterator[AsyncJob]:
        """Iterates the catalog's jobs, newest first."""
        token = ""
        while True:
            answer = await self._transport.unary(
                LIST,
                enrichment_pb2.ListJobsRequest(catalog=self._catalog, page_size=_JOBS_PER_PAGE, page_token=token),
            )
            for job in answer.jobs:
                yield AsyncJob(status_from_wire(job), self._transport)
            token = answer.next_page_token
            if not token:
                return

    async def retry(self, job_id: str, *, request_id: str | None = None) -> AsyncJob:
        """Starts a job with the settings of an ended one."""
        request = enrichment_pb2.RetryJobRequest(
            job_id=one_id(job_id, name="job_id"), request_id=request_id or str(uuid.uuid4())
        )
        return AsyncJob(status_from_wire((await self._transport.unary(RETRY, request)).job), self._transport)

    async def descriptions(self, item_ids: Iterable[str], *, recipe: str = "default") -> Descriptions:
        """Reads the descriptions of items."""
        return await read_descriptions(self._transport, self._catalog, item_ids, recipe=recipe)

    async def list_descriptions(
        self, *, recipe: str = "default", include_failures: bool = False, page_size: int = _ITEMS_PER_PAGE
    ) -> AsyncIterator[Description]:
        """Iterates all descriptions of a recipe, ordered by item."""
        pages = list_all(
            self._transport, self._catalog, recipe=recipe, include_failures=include_failures, page_size=page_size
        )
        async with aclosing(pages):
            async for one in pages:
                yield one

    async def edit_description(
        self, item_id: str, *, route: str, text: str, author: str, recipe: str = "default"
    ) -> Description:
        """Puts a person's correction in the place of a description."""
        return await write_edit(
            self._transport, self._catalog, item_id, route=route, recipe=recipe, text=text, author=author
        )

    async def withdraw_edit(self, item_id: str, *, route: str, recipe: str = "default") -> Description | None:
        """Takes a person's correction back."""
        return await write_withdrawal(self._transport, self._catalog, item_id, route=route, recipe=recipe)

    async def preview(
        self, item_id: str, *, route: str, recipe: str | None = None, describer: str | None = None
    ) -> PromptPreview:
        """Renders the prompt of one item and route."""
        return await read_preview(
            self._transport, self._catalog, item_id, route=route, recipe=recipe, describer=describer
        )

    async def stats(self, recipe: str = "default") -> EnrichmentStats:
        """Tells what a recipe's descriptions are like."""
        return await read_enrichment_stats(self._transport, self._catalog, recipe=recipe)

    async def import_descriptions(
        self,
        descriptions: Iterable[ImportedDescription] | AsyncIterable[ImportedDescription],
        *,
        model: str,
        is_mllm: bool = True,
        recipe: str = "default",
    ) -> UpsertSummary:
        """Brings in descriptions that were made elsewhere."""
        return await write_descriptions(
            self._transport, self._catalog, descriptions, model=model, is_mllm=is_mllm, recipe=recipe
        )


class Enrichment:
    """Enrichment of one catalog."""

    def __init__(self, core: AsyncEnrichment, loop: EventLoopThread) -> None:
        self._core = core
        self._loop = loop

    def start(
        self,
        *,
        recipe: str = "default",
        routes: Iterable[str] | None = None,
        item_ids: Iterable[str] | None = None,
        limit: int | None = None,
        describer: str | None = None,
        encoder: str | None = None,
        retry_failed: bool = False,
        request_id: str | None = None,
    ) -> Job:
        """Starts a job: describes what is new or has changed, encodes it, writes the vectors.

        Args:
            recipe: The name that is bound to the recipe that these settings make.
            routes: Of "text", "image", "hybrid"; all three when None. The original text is encoded always.
            item_ids: Only these items; all when None.
            limit: At most so many items that need work.
            describer: The server's own when None.
            encoder: The server's own when None.
            retry_failed: Try again what failed before.
            request_id: A UUID; a second start with it returns the same job. One is made when None.

        Raises:
            UnknownRoute: A route is not one of the server's.
            DescriberUnavailable: The describer is unknown, not installed or cannot start.
            EncoderUnavailable: The same for the encoder.
        """
        return Job(
            self._loop.run(
                self._core.start(
                    recipe=recipe,
                    routes=routes,
                    item_ids=item_ids,
                    limit=limit,
                    describer=describer,
                    encoder=encoder,
                    retry_failed=retry_failed,
                    request_id=request_id,
                )
            ),
            self._loop,
        )

    def estimate(
        self,
        *,
        recipe: str = "default",
        routes: Iterable[str] | None = None,
        item_ids: Iterable[str] | None = None,
        limit: int | None = None,
        describer: str | None = None,
        encoder: str | None = None,
        retry_failed: bool = False,
    ) -> Estimate:
        """Tells what a job with these settings would do and cost. Changes nothing. Arguments as in :meth:`start`."""
        return self._loop.run(
            self._core.estimate(
                recipe=recipe,
                routes=routes,
                item_ids=item_ids,
                limit=limit,
                describer=describer,
                encoder=encoder,
                retry_failed=retry_failed,
            )
        )

    def get(self, job_id: str) -> Job:
        """Finds a job by its id.

        Raises:
            JobNotFound: There is no such job.
        """
        return Job(self._loop.run(self._core.get(job_id)), self._loop)

    def list(self) -> Iterator[Job]:
        """Iterates the catalog's jobs, newest first."""
        for job in self._loop.iterate(self._core.list, prefetch=_JOBS_PER_PAGE):
            yield Job(job, self._loop)

    def retry(self, job_id: str, *, request_id: str | None = None) -> Job:
        """Starts a job with the settings of an ended one, failed descriptions included.

        Raises:
            WrongJobState: The job has not ended.
        """
        return Job(self._loop.run(self._core.retry(job_id, request_id=request_id)), self._loop)

    def descriptions(self, item_ids: Iterable[str], *, recipe: str = "default") -> Descriptions:
        """Reads the descriptions of items, with their provenance and the original texts.

        Args:
            item_ids: The items, in the order of the answer.
            recipe: The recipe's name or id.
        """
        return self._loop.run(self._core.descriptions(item_ids, recipe=recipe))

    def list_descriptions(
        self, *, recipe: str = "default", include_failures: bool = False, page_size: int = _ITEMS_PER_PAGE
    ) -> Iterator[Description]:
        """Iterates all descriptions of a recipe with their provenance, ordered by item, at constant memory.

        Args:
            recipe: The recipe's name or id.
            include_failures: Also those that failed: without a text, with their problem.
            page_size: Items whose descriptions come in one answer.
        """

        def make() -> AsyncIterator[Description]:
            return self._core.list_descriptions(recipe=recipe, include_failures=include_failures, page_size=page_size)

        yield from self._loop.iterate(make, prefetch=page_size)

    def edit_description(
        self, item_id: str, *, route: str, text: str, author: str, recipe: str = "default"
    ) -> Description:
        """Puts a person's correction in the place of a description; no job touches it until it is withdrawn.

        The next job encodes it. When the item changes the correction stays and is told to be stale. It belongs to the
        item, the route and the description recipe: another model or prompt describes anew.

        Args:
            item_id: The item.
            route: The route.
            text: The text that is to stand.
            author: Who writes it; kept in the provenance.
            recipe: The recipe's name or id.

        Returns:
            The description as it stands now, with what it replaces.

        Raises:
            ItemNotFound: No such item.
            UnknownRoute: The recipe has no such route.
        """
        return self._loop.run(
            self._core.edit_description(item_id, route=route, text=text, author=author, recipe=recipe)
        )

    def withdraw_edit(self, item_id: str, *, route: str, recipe: str = "default") -> Description | None:
        """Takes a person's correction back.

        Returns:
            What the describer had made; None where the next job makes it.

        Raises:
            CorrectionNotFound: Nobody has corrected this description.
        """
        return self._loop.run(self._core.withdraw_edit(item_id, route=route, recipe=recipe))

    def preview(
        self, item_id: str, *, route: str, recipe: str | None = None, describer: str | None = None
    ) -> PromptPreview:
        """Renders the prompt of one item and route as its describer would send it. Loads no model.

        Args:
            item_id: The item.
            route: The route.
            recipe: A recipe's name or id, whose describer is asked, with the prompts that are configured now.
            describer: This one; that of the recipe, or the server's own, when None.

        Raises:
            NoPrompt: The describer works without prompts.
            RouteNotApplicable: The item has no text or no picture.
        """
        return self._loop.run(self._core.preview(item_id, route=route, recipe=recipe, describer=describer))

    def stats(self, recipe: str = "default") -> EnrichmentStats:
        """Tells by route what a recipe's descriptions are like and what they took: coverage, length, tokens, failures.

        Args:
            recipe: The recipe's name or id.
        """
        return self._loop.run(self._core.stats(recipe))

    def import_descriptions(
        self,
        descriptions: Iterable[ImportedDescription],
        *,
        model: str,
        is_mllm: bool = True,
        recipe: str = "default",
    ) -> UpsertSummary:
        """Brings in descriptions that were made elsewhere, streaming.

        Start a job with `describer="import"` afterwards to encode them.

        Args:
            descriptions: The descriptions. The iterable runs in the calling thread.
            model: Who made them: the model and its revision. Part of the recipe's identity.
            is_mllm: Whether a multimodal LLM made them.
            recipe: The name of the recipe that gets them.
        """
        return self._loop.run(self._core.import_descriptions(descriptions, model=model, is_mllm=is_mllm, recipe=recipe))
