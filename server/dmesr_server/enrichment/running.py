"""Runs one claimed job to its end: renews its lease, listens for a cancellation, and settles how it ended."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, auto
from typing import Any, TypeVar

from dmesr_server.config import Config
from dmesr_server.control import CatalogRow, ClaimedJob, Control, JobState
from dmesr_server.errors import ServiceError
from dmesr_server.pictures.decoders import Decoders
from dmesr_server.store import Store
from dmesr_server.telemetry import traces
from dmesr_server.telemetry.logs import JOB_ID
from dmesr_server.telemetry.traces import Span

from .jobs import TRACE
from .pipeline import Pipeline
from .progress import Progress
from .specs import JobSpec, Means

_LOG = logging.getLogger(__name__)
_REPORT_SECONDS = 0.5
_WATCH_SECONDS = 0.25
# Of a lease's time. Two renewals may fail before it runs out.
_RENEW_SHARE = 1 / 3
#: What takes a job away from whoever works on it: another enricher, or somebody who dropped the catalog.
_TAKEN_AWAY = ("LEASE_LOST", "JOB_NOT_FOUND", "CATALOG_NOT_FOUND")

_Result = TypeVar("_Result")


class _Interruption(Enum):
    CANCELLED = auto()  # somebody asked for it
    STOPPED = auto()  # this process has to end
    LOST = auto()  # it is somebody else's job now


class RunningJob:
    """One job in the hands of this process. One use only."""

    def __init__(
        self,
        *,
        control: Control,
        store: Store,
        config: Config,
        claimed: ClaimedJob,
        catalog: CatalogRow,
        means: Means,
        decoders: Decoders,
        stopping: asyncio.Event,
        heart: ThreadPoolExecutor,
    ):
        """Settles what is needed.

        Args:
            control: The job, its lease and its progress.
            store: The items and what is made of them.
            config: Batch sizes, limits and how often to renew.
            claimed: The job.
            catalog: Its catalog.
            means: Describer, encoder and recipe.
            decoders: Decode pictures.
            stopping: Set when this process has to end; the job then goes back to the queue.
            heart: A thread for the lease alone: a renewal must not wait behind a thousand vectors.
        """
        self._control = control
        self._job = claimed.job
        self._lease = claimed.lease
        self._means = means
        self._stopping = stopping
        self._heart = heart
        self._lost = asyncio.Event()
        self._progress = Progress.resumed(means.routes, claimed.job.progress)
        self._reported = 0.0
        self._steps = config.telemetry.job_steps
        self._pipeline = Pipeline(
            config=config,
            catalog=store.catalog(claimed.job.catalog),
            domain=catalog.domain,
            language=catalog.language,
            job_id=claimed.job.job_id,
            spec=JobSpec.from_json(claimed.job.spec),
            means=means,
            decoders=decoders,
            progress=self._progress,
            fence=self._may_write,
            report=self._report,
        )

    async def run(self) -> None:
        """Runs until the job has ended, went back to the queue, or is somebody else's. Never raises for its sake."""
        job = self._job
        JOB_ID.set(job.job_id)
        told: traces.Attributes = {
            "dmesr.job_id": job.job_id,
            "dmesr.catalog": job.catalog,
            "dmesr.recipe": job.recipe_id,
            "dmesr.describer": job.describer,
            "dmesr.encoder": job.encoder,
            "dmesr.attempt": job.attempts,
        }
        carrier = job.spec.get(TRACE) or {}
        with (
            traces.entry("job", kind="CONSUMER", carrier=carrier, attributes=told) as span,
            traces.bounded(self._steps),
        ):
            await self._run(span)

    async def _run(self, span: Span) -> None:
        job, describer = self._job, self._means.describer
        _LOG.info(
            "job started: job=%s catalog=%s attempt=%d describer=%s encoder=%s recipe=%s",
            job.job_id,
            job.catalog,
            job.attempts,
            job.describer,
            job.encoder,
            job.recipe_id,
        )
        if not describer.is_mllm:
            _LOG.info("the describer %s is no multimodal LLM: job=%s", describer.name, job.job_id)
        beat = asyncio.create_task(self._beat())
        try:
            await self._settle(await self._worked(), span)
        except ServiceError as error:
            if error.reason not in _TAKEN_AWAY:
                # The control database cannot be reached. The lease will run out and the job be taken up again.
                _LOG.error("job cannot be settled: job=%s reason=%s: %s", job.job_id, error.reason, error.message)
            else:
                _LOG.warning("job was taken away: job=%s: %s", job.job_id, error.message)
        finally:
            beat.cancel()
            await asyncio.gather(beat, return_exceptions=True)

    async def _worked(self) -> BaseException | _Interruption | None:
        """Does the work. Returns what ended it early, if anything."""
        work = asyncio.create_task(self._pipeline.run())
        watch = asyncio.create_task(self._interrupted())
        try:
            await asyncio.wait([work, watch], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.exception()
            work.cancel()
            await asyncio.wait([work])
            error = None if work.cancelled() else work.exception()
            return error or watch.result()
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)

    async def _settle(self, end: BaseException | _Interruption | None, span: Span) -> None:
        job_id = self._job.job_id
        failed = "" if end is None or isinstance(end, _Interruption) else getattr(end, "reason", "INTERNAL")
        how = end.name if isinstance(end, _Interruption) else "FAILED" if failed else "SUCCEEDED"
        span.note({"dmesr.outcome": how, "dmesr.items": self._progress.items_done})
        span.settled(failed=failed)
        if end is _Interruption.LOST or (isinstance(end, ServiceError) and end.reason in _TAKEN_AWAY):
            _LOG.warning("job was taken away: job=%s", job_id)
        elif end is _Interruption.STOPPED:
            await self._report(now=True)
            await asyncio.to_thread(self._control.jobs.requeue, job_id, self._lease)
            _LOG.info("job put back into the queue: job=%s", job_id)
        elif end is None:
            await self._finish(JobState.SUCCEEDED)
        elif end is _Interruption.CANCELLED:
            await self._finish(JobState.CANCELLED)
        elif isinstance(end, ServiceError):
            await self._finish(JobState.FAILED, end)
        else:
            assert isinstance(end, BaseException)
            fault = uuid.uuid4().hex[:12]
            _LOG.error("job failed by a fault of the server: job=%s fault=%s", job_id, fault, exc_info=end)
            message = f"a fault of the server ({type(end).__name__}), logged by the enricher under {fault}; report it"
            await self._finish(JobState.FAILED, ServiceError("INTERNAL", message, fault=fault))

    async def _finish(self, state: JobState, error: ServiceError | None = None) -> None:
        problem: dict[str, Any] | None = None
        if error is not None:
            problem = {"reason": error.reason, "message": error.message, "metadata": dict(error.metadata)}
        progress = self._progress.to_json()
        await asyncio.to_thread(self._control.jobs.finish, self._job.job_id, self._lease, state, problem, progress)
        _LOG.log(
            logging.INFO if error is None else logging.ERROR,
            "job ended: job=%s state=%s items=%d seconds=%s%s %s",
            self._job.job_id,
            state,
            self._progress.items_done,
            progress["rates"]["seconds"],
            "" if error is None else f" reason={error.reason} message={error.message!r}",
            " ".join(
                f"{tally.route}={tally.described}+{tally.encoded}" + (f"-{tally.failed}" if tally.failed else "")
                for tally in self._progress.routes.values()
            ),
        )

    # While it runs

    async def _beat(self) -> None:
        """Renews the lease until it is lost or this is cancelled."""
        while True:
            await asyncio.sleep(self._lease.ttl_seconds * _RENEW_SHARE)
            try:
                self._lease = await self._on_heart(lambda: self._control.leases.renew(self._lease))
            except ServiceError as error:
                if error.reason == "LEASE_LOST":
                    self._lost.set()
                    return
                _LOG.warning("lease not renewed, trying again: job=%s: %s", self._job.job_id, error.message)

    async def _interrupted(self) -> _Interruption:
        """Returns when the work has to stop."""
        while True:
            if self._lost.is_set():
                return _Interruption.LOST
            if self._stopping.is_set():
                return _Interruption.STOPPED
            try:
                if await asyncio.to_thread(self._control.jobs.cancel_requested, self._job.job_id):
                    return _Interruption.CANCELLED
            except ServiceError as error:
                if error.reason in _TAKEN_AWAY:
                    return _Interruption.LOST
            await asyncio.sleep(_WATCH_SECONDS)

    def _may_write(self) -> None:
        self._control.jobs.get(self._job.job_id)  # gone with its catalog: a write would bring the tables back
        self._control.leases.check(self._lease)

    async def _report(self, *, now: bool = False) -> None:
        if not now and time.monotonic() - self._reported < _REPORT_SECONDS:
            return
        self._reported = time.monotonic()
        progress = self._progress.to_json()
        await asyncio.to_thread(self._control.jobs.progress, self._job.job_id, self._lease, progress)

    async def _on_heart(self, call: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._heart, call)
