"""EnrichmentService: jobs that describe and encode items, and the descriptions that they made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from dmesr.v1 import enrichment_pb2 as pb
from dmesr.v1 import enrichment_pb2_grpc
from grpc.aio import ServicerContext

from dmesr_server.api import job_translation, validation
from dmesr_server.api.parts import Parts
from dmesr_server.control import JobRow

_Context = ServicerContext[Any, Any]
_WATCH_SECONDS = 0.2


class EnrichmentServicer(enrichment_pb2_grpc.EnrichmentServiceServicer):
    """Runs enrichment jobs and reads and imports descriptions."""

    def __init__(self, parts: Parts):
        self._parts = parts
        self._control = parts.control
        self._limits = parts.config.limits

    async def GetJob(self, request: pb.GetJobRequest, context: _Context) -> pb.GetJobResponse:
        """Reads one job."""
        return pb.GetJobResponse(job=job_translation.job(await self._job(request.job_id)))

    async def ListJobs(self, request: pb.ListJobsRequest, context: _Context) -> pb.ListJobsResponse:
        """Lists jobs, newest first."""
        return await asyncio.to_thread(self._list, request)

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
        job = await asyncio.to_thread(self._control.jobs.request_cancel, request.job_id)
        return pb.CancelJobResponse(job=job_translation.job(job))

    async def _job(self, job_id: str) -> JobRow:
        validation.required(job_id=job_id)
        return await asyncio.to_thread(self._control.jobs.get, job_id)

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
