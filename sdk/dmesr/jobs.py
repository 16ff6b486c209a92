"""Jobs: handles on enrichment that runs on the server, whether or not anybody watches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing

from dmesr.bridge import EventLoopThread, notify
from dmesr.errors import DeadlineExceeded, JobFailed, Overloaded, ServerUnavailable, StoreUnavailable
from dmesr.job_status import JobState, JobStatus, StatusView, status_from_wire
from dmesr.progress import following
from dmesr.rows import Problem
from dmesr.transport import Rpc, Transport
from dmesr.v1 import enrichment_pb2

GET = Rpc("EnrichmentService/GetJob", enrichment_pb2.GetJobRequest, enrichment_pb2.GetJobResponse, idempotent=True)
WATCH = Rpc(
    "EnrichmentService/WatchJob", enrichment_pb2.WatchJobRequest, enrichment_pb2.WatchJobResponse, idempotent=True
)
CANCEL = Rpc("EnrichmentService/CancelJob", enrichment_pb2.CancelJobRequest, enrichment_pb2.CancelJobResponse)

_log = logging.getLogger("dmesr")

# Somebody who waits without a time limit is told that the server is gone after this long.
_OUTAGE_SECONDS = 120.0


class AsyncJob(StatusView):
    """A job, for coroutines. See :class:`Job` for what each call does."""

    def __init__(self, status: JobStatus, transport: Transport) -> None:
        self._status = status
        self._transport = transport

    async def refresh(self) -> AsyncJob:
        """Reads the job again into this handle."""
        answer = await self._transport.unary(GET, enrichment_pb2.GetJobRequest(job_id=self.job_id))
        self._status = status_from_wire(answer.job)
        return self

    async def cancel(self) -> AsyncJob:
        """Asks the job to stop."""
        answer = await self._transport.unary(CANCEL, enrichment_pb2.CancelJobRequest(job_id=self.job_id))
        self._status = status_from_wire(answer.job)
        return self

    async def watch(self) -> AsyncIterator[AsyncJob]:
        """Iterates the job's states."""
        async with aclosing(self._states(None)) as states:
            async for status in states:
                self._status = status
                yield AsyncJob(status, self._transport)

    async def wait(
        self, *, progress: bool | Callable[[AsyncJob], object] = False, timeout: float | None = None
    ) -> AsyncJob:
        """Waits until the job has ended."""
        with following(progress) as tell:
            async with aclosing(self._states(timeout)) as states:
                async for status in states:
                    self._status = status
                    if tell is not None:
                        await notify(tell, AsyncJob(status, self._transport))
        if self.state is JobState.FAILED:
            problem = self.problem or Problem("", "no reason was recorded")
            raise JobFailed(
                f"job {self.job_id} failed: {problem.message}",
                job_id=self.job_id,
                reason=problem.reason,
                metadata=problem.metadata,
            )
        return self

    async def _states(self, seconds: float | None) -> AsyncGenerator[JobStatus, None]:
        """Each state until the job has ended, across restarts of the server.

        Args:
            seconds: How long in all. Without it, an outage may last :data:`_OUTAGE_SECONDS`.
        """
        loop = asyncio.get_running_loop()
        end = None if seconds is None else loop.time() + seconds
        gone_since: float | None = None
        failed = 0
        while True:
            try:
                request = enrichment_pb2.WatchJobRequest(job_id=self.job_id)
                async with aclosing(self._transport.stream(WATCH, request)) as answers:
                    while True:
                        try:
                            async with asyncio.timeout_at(end):
                                answer = await anext(answers)
                        except (StopAsyncIteration, DeadlineExceeded):
                            break  # the server drains, or has nothing new to tell: ask again
                        except TimeoutError:
                            raise self._late(seconds) from None
                        gone_since, failed = None, 0
                        status = status_from_wire(answer.job)
                        yield status
                        if status.state.ended:
                            return
            except (ServerUnavailable, StoreUnavailable, Overloaded) as error:
                if gone_since is None:
                    gone_since = loop.time()
                    _log.warning("job %s: %s; waiting for it to come back", self.job_id, error)
                if end is None and loop.time() - gone_since > _OUTAGE_SECONDS:
                    raise
            failed += 1
            pause = self._transport.retry.pause_seconds(failed)
            if end is not None and loop.time() + pause >= end:
                raise self._late(seconds)
            await asyncio.sleep(pause)

    def _late(self, seconds: float | None) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"job {self.job_id} has not ended within {seconds:g} s: {self.state.name}, {self.items_done} of "
            f"{self.items_total} items; it goes on: wait again, or cancel it"
        )


class Job(StatusView):
    """A job that runs on the server, whether or not anybody watches.

    The properties tell the state that was read last; `refresh`, `wait`, `watch` and `cancel` read it anew.
    """

    def __init__(self, core: AsyncJob, loop: EventLoopThread) -> None:
        self._core = core
        self._loop = loop

    @property
    def _status(self) -> JobStatus:  # type: ignore[override]  # of the core: there is one state, not two
        return self._core.status

    def refresh(self) -> Job:
        """Reads the job again into this handle, and returns the handle."""
        self._loop.run(self._core.refresh())
        return self

    def cancel(self) -> Job:
        """Asks the job to stop. What it has written stays, and the next job goes on from there.

        Raises:
            WrongJobState: The job has ended.
        """
        self._loop.run(self._core.cancel())
        return self

    def watch(self) -> Iterator[Job]:
        """Iterates the job's states: as it is, then whenever it changes, until it has ended.

        A restart of the server is waited for.
        """
        for job in self._loop.iterate(self._core.watch, prefetch=8):
            yield Job(job, self._loop)

    def wait(self, *, progress: bool | Callable[[Job], object] = False, timeout: float | None = None) -> Job:
        """Waits until the job has ended, across restarts of the server.

        Args:
            progress: True shows a bar on stderr; a callable gets the job at every change, in the calling thread.
            timeout: Seconds to wait at most; None waits as long as it takes, but not for a server that is gone for
                two minutes.

        Returns:
            This job: SUCCEEDED, or CANCELLED where somebody asked for that.

        Raises:
            JobFailed: The job ended in state FAILED.
            DeadlineExceeded: The job has not ended in time; it goes on.
        """
        with following(progress) as tell:
            told = None if tell is None else lambda job: tell(Job(job, self._loop))
            self._loop.run(self._core.wait(progress=told or False, timeout=timeout))
        return self
