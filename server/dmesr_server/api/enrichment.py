"""EnrichmentService: jobs that describe and encode items, and the descriptions that they made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from dmesr.v1 import enrichment_pb2 as pb
from dmesr.v1 import enrichment_pb2_grpc, items_pb2
from grpc.aio import ServicerContext

from dmesr_server.api import descriptions, job_translation, translation, validation
from dmesr_server.api.parts import Parts
from dmesr_server.api.working import in_thread
from dmesr_server.control import JobRow
from dmesr_server.enrichment import estimating, imports, jobs

_Context = ServicerContext[Any, Any]
_WATCH_SECONDS = 0.2


class EnrichmentServicer(enrichment_pb2_grpc.EnrichmentServiceServicer):
    """Runs enrichment jobs and reads and imports descriptions."""

    def __init__(self, parts: Parts):
        self._parts = parts
        self._control = parts.control
        self._limits = parts.config.limits

    async def StartJob(self, request: pb.StartJobRequest, context: _Context) -> pb.StartJobResponse:
        """Starts a job."""
        return await in_thread(self._start, request)

    async def EstimateJob(self, request: pb.EstimateJobRequest, context: _Context) -> pb.EstimateJobResponse:
        """Tells what a job would do and cost."""
        return await in_thread(self._estimate, request)

    async def RetryJob(self, request: pb.RetryJobRequest, context: _Context) -> pb.RetryJobResponse:
        """Starts a job with the settings of an ended one."""
        return await in_thread(self._retry, request)

    async def GetJob(self, request: pb.GetJobRequest, context: _Context) -> pb.GetJobResponse:
        """Reads one job."""
        return pb.GetJobResponse(job=job_translation.job(await self._job(request.job_id)))

    async def ListJobs(self, request: pb.ListJobsRequest, context: _Context) -> pb.ListJobsResponse:
        """Lists jobs, newest first."""
        return await in_thread(self._list, request)

    async def WatchJob(self, request: pb.WatchJobRequest, context: _Context) -> AsyncIterator[pb.WatchJobResponse]:
        """Streams the job until it has ended. Any API process can: they all read it from the control database."""
        shown: JobRow | None = None
        while shown is None or not shown.state.ended:
            job = await self._job(request.job_id)
            if job != shown:
                yield pb.WatchJobResponse(job=job_translation.job(job))
                shown = job
            else:
                await asyncio.sleep(_WATCH_SECONDS)

    async def CancelJob(self, request: pb.CancelJobRequest, context: _Context) -> pb.CancelJobResponse:
        """Asks a job to stop."""
        validation.required(job_id=request.job_id)
        job = await in_thread(self._control.jobs.request_cancel, request.job_id)
        return pb.CancelJobResponse(job=job_translation.job(job))

    async def GetDescriptions(
        self, request: pb.GetDescriptionsRequest, context: _Context
    ) -> pb.GetDescriptionsResponse:
        """Reads the descriptions of items."""
        return await in_thread(descriptions.get, self._parts, request)

    async def ListDescriptions(
        self, request: pb.ListDescriptionsRequest, context: _Context
    ) -> pb.ListDescriptionsResponse:
        """Lists all descriptions of a recipe, a page at a time."""
        return await in_thread(descriptions.page, self._parts, request)

    async def EditDescription(
        self, request: pb.EditDescriptionRequest, context: _Context
    ) -> pb.EditDescriptionResponse:
        """Puts a person's correction in the place of a description, or withdraws it."""
        answer = await in_thread(descriptions.edit, self._parts, request)
        if validation.recipe_ref(request.recipe) == validation.DEFAULT_RECIPE:
            await self._parts.auto_enrichment.ensure(validation.catalog_name(request.catalog))
        return answer

    async def PreviewPrompt(self, request: pb.PreviewPromptRequest, context: _Context) -> pb.PreviewPromptResponse:
        """Renders the prompt of one item and route."""
        return await in_thread(descriptions.preview, self._parts, request)

    async def GetEnrichmentStats(
        self, request: pb.GetEnrichmentStatsRequest, context: _Context
    ) -> pb.GetEnrichmentStatsResponse:
        """Tells what a recipe's descriptions are like."""
        return await in_thread(descriptions.stats, self._parts, request)

    async def ImportDescriptions(
        self, request_iterator: AsyncIterator[pb.ImportDescriptionsRequest], context: _Context
    ) -> AsyncIterator[pb.ImportDescriptionsResponse]:
        """Brings in descriptions made elsewhere; a batch is answered when it is durable."""
        first: pb.ImportDescriptionsRequest | None = None
        async for request in request_iterator:
            first = first or request
            answer = await in_thread(self._import, request, first)
            if validation.recipe_ref(first.recipe) == validation.DEFAULT_RECIPE and any(
                result.outcome != items_pb2.ROW_OUTCOME_REJECTED for result in answer.results
            ):
                # Automatic jobs fill the recipe of that name: here they encode what was brought in.
                await self._parts.auto_enrichment.ensure(validation.catalog_name(request.catalog or first.catalog))
            yield answer

    def _start(self, request: pb.StartJobRequest) -> pb.StartJobResponse:
        row, _ = self._parts.catalog(request.catalog)
        job = jobs.start_job(
            control=self._control,
            store=self._parts.store,
            config=self._parts.config,
            catalog=row.name,
            spec=job_translation.job_spec(request.spec, self._limits),
            request_id=validation.request_id(request.request_id),
        )
        return pb.StartJobResponse(job=job_translation.job(job))

    def _estimate(self, request: pb.EstimateJobRequest) -> pb.EstimateJobResponse:
        row, catalog = self._parts.catalog(request.catalog)
        found = estimating.estimate(
            control=self._control,
            config=self._parts.config,
            catalog=catalog,
            name=row.name,
            spec=job_translation.job_spec(request.spec, self._limits),
        )
        return job_translation.estimate(found)

    def _retry(self, request: pb.RetryJobRequest) -> pb.RetryJobResponse:
        validation.required(job_id=request.job_id)
        job = jobs.retry_job(
            control=self._control,
            store=self._parts.store,
            config=self._parts.config,
            job_id=request.job_id,
            request_id=validation.request_id(request.request_id),
        )
        return pb.RetryJobResponse(job=job_translation.job(job))

    def _import(
        self, request: pb.ImportDescriptionsRequest, first: pb.ImportDescriptionsRequest
    ) -> pb.ImportDescriptionsResponse:
        row, catalog = self._parts.catalog(request.catalog or first.catalog)
        validation.at_most(
            "descriptions", len(request.descriptions), self._limits.max_items_per_batch, "max_items_per_batch"
        )
        outcomes = imports.import_descriptions(
            control=self._control,
            store=catalog,
            config=self._parts.config,
            catalog=row.name,
            model=first.model,
            is_mllm=first.is_mllm,
            recipe=validation.new_name("recipe", validation.recipe_ref(first.recipe)),
            rows=[imports.ImportRow(wire.item_id, wire.route, wire.text, wire.author) for wire in request.descriptions],
        )
        return pb.ImportDescriptionsResponse(
            results=[
                translation.taken(outcome.item_id, outcome.outcome)
                if outcome.problem is None
                else translation.rejected(outcome.item_id, outcome.problem)
                for outcome in outcomes
            ]
        )

    async def _job(self, job_id: str) -> JobRow:
        validation.required(job_id=job_id)
        return await in_thread(self._control.jobs.get, job_id)

    def _list(self, request: pb.ListJobsRequest) -> pb.ListJobsResponse:
        catalog = self._control.catalogs.get(request.catalog).name if request.catalog else None
        size = validation.page_size(request.page_size)
        after = validation.decode_page_token("ListJobs", [request.catalog], request.page_token)
        rows = self._control.jobs.list(catalog, size + 1, after)
        response = pb.ListJobsResponse()
        room = self._limits.max_message_bytes - 64 * 1024  # for the rest of the message
        for row in rows[:size]:
            wire = job_translation.job(row)
            room -= wire.ByteSize() + 8
            if room < 0 and response.jobs:
                break
            response.jobs.append(wire)
        if len(response.jobs) < len(rows):
            last = rows[len(response.jobs) - 1].job_id
            response.next_page_token = validation.encode_page_token("ListJobs", [request.catalog], last)
        return response
