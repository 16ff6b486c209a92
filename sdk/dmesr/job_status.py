"""Where a job stands, as values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from dmesr.rows import Problem, to_problem, to_time
from dmesr.v1 import enrichment_pb2


class JobState(StrEnum):
    """Where a job stands."""

    UNSPECIFIED = "UNSPECIFIED"  # a state that this version does not know
    QUEUED = "QUEUED"  # waiting for an enricher
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"  # every wanted description and vector is there or has a recorded failure
    FAILED = "FAILED"  # ended early with an error
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        """True when nothing more will happen."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class RouteProgress:
    """What a job has done for one route so far. "original" counts too: it is encoded, not described."""

    route: str
    applicable: int  # items for which the route applies
    described: int  # by this job
    reused: int  # described before from the same content: no work
    failed: int  # with a recorded reason
    encoded: int  # vectors written by this job


@dataclass(frozen=True)
class JobStatus:
    """A job as it stood when the server was asked."""

    job_id: str
    catalog: str
    recipe: str  # the recipe's name
    state: JobState
    recipe_id: str
    items_done: int
    items_total: int  # 0 until it has been counted
    routes: tuple[RouteProgress, ...]  # "original" first
    problem: Problem | None  # why it failed
    create_time: datetime | None
    start_time: datetime | None
    end_time: datetime | None
    describer: str
    encoder: str


def status_from_wire(job: enrichment_pb2.Job) -> JobStatus:
    """The wire's job."""
    state = enrichment_pb2.JobState.DESCRIPTOR.values_by_number.get(job.state)
    name = state.name.removeprefix("JOB_STATE_") if state is not None else ""
    return JobStatus(
        job_id=job.job_id,
        catalog=job.catalog,
        recipe=job.spec.recipe or "default",
        state=JobState(name) if name in JobState.__members__ else JobState.UNSPECIFIED,
        recipe_id=job.recipe_id,
        items_done=job.items_done,
        items_total=job.items_total,
        routes=tuple(
            RouteProgress(one.route, one.applicable, one.described, one.reused, one.failed, one.encoded)
            for one in job.routes
        ),
        problem=to_problem(job.problem) if job.HasField("problem") else None,
        create_time=to_time(job.create_time),
        start_time=to_time(job.start_time),
        end_time=to_time(job.end_time),
        describer=job.describer,
        encoder=job.encoder,
    )


class StatusView:
    """What the handles of both faces tell: the state that was read last."""

    _status: JobStatus

    @property
    def status(self) -> JobStatus:
        """Everything below as one value."""
        return self._status

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self._status.job_id

    @property
    def catalog(self) -> str:
        """The catalog it works on."""
        return self._status.catalog

    @property
    def recipe(self) -> str:
        """The name of the recipe that it fills."""
        return self._status.recipe

    @property
    def recipe_id(self) -> str:
        """The id of the recipe that it fills."""
        return self._status.recipe_id

    @property
    def state(self) -> JobState:
        """Where it stands."""
        return self._status.state

    @property
    def items_done(self) -> int:
        """Items looked at so far."""
        return self._status.items_done

    @property
    def items_total(self) -> int:
        """Items to look at; 0 until it has been counted."""
        return self._status.items_total

    @property
    def routes(self) -> tuple[RouteProgress, ...]:
        """Progress of each route, "original" first."""
        return self._status.routes

    @property
    def problem(self) -> Problem | None:
        """Why it failed; None unless it did."""
        return self._status.problem

    @property
    def create_time(self) -> datetime | None:
        """When it was created."""
        return self._status.create_time

    @property
    def start_time(self) -> datetime | None:
        """When an enricher first took it."""
        return self._status.start_time

    @property
    def end_time(self) -> datetime | None:
        """When it ended."""
        return self._status.end_time

    @property
    def describer(self) -> str:
        """The describer that works on it."""
        return self._status.describer

    @property
    def encoder(self) -> str:
        """The encoder that works on it."""
        return self._status.encoder

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.job_id} {self.state.name} {self.items_done}/{self.items_total} items, "
            f"recipe {self.recipe!r}>"
        )
