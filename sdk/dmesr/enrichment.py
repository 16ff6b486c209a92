"""Enrichment: jobs that describe items and encode the descriptions, and the descriptions themselves."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass

from dmesr.arguments import id_list, one_id, positive
from dmesr.bridge import EventLoopThread
from dmesr.descriptions import Descriptions, ImportedDescription, read_descriptions, write_descriptions
from dmesr.jobs import GET, AsyncJob, Job, status_from_wire
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
ESTIMATE = Rpc(
    "EnrichmentService/EstimateJob",
    enrichment_pb2.EstimateJobRequest,
    enrichment_pb2.EstimateJobResponse,
    idempotent=True,
)
LIST = Rpc(
    "EnrichmentService/ListJobs", enrichment_pb2.ListJobsRequest, enrichment_pb2.ListJobsResponse, idempotent=True
)
_JOBS_PER_PAGE = 100


@dataclass(frozen=True)
class RouteEstimate:
    """The work of one route."""

    route: str
    applicable: int  # items for which the route applies
    reused: int  # items whose description exists already
    to_describe: int
    to_encode: int


@dataclass(frozen=True)
class Estimate:
    """What a job would do and cost."""

    items: int  # that the job would look at
    routes: tuple[RouteEstimate, ...]
    seconds: float | None  # by the rates of earlier jobs; None when there were none
    tokens: int | None  # None where the describer counts none
    store_bytes: int
    basis: str  # how the figures were got, in a sentence


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
        return Estimate(
            items=answer.items,
            routes=tuple(
                RouteEstimate(one.route, one.applicable, one.reused, one.to_describe, one.to_encode)
                for one in answer.routes
            ),
            seconds=answer.seconds if answer.HasField("seconds") else None,
            tokens=answer.tokens if answer.HasField("tokens") else None,
            store_bytes=answer.store_bytes,
            basis=answer.basis,
        )

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
