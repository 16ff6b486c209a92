"""Jobs: the queue between those who ask for enrichment and those who do it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from ..errors import ServiceError
from . import catalogs, leases, schema
from .database import Database, now
from .leases import Lease


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True)
class JobRow:
    """A job as it stands.

    Attributes:
        job_id: Its id.
        catalog: The catalog that it works on.
        spec: What was asked, as JSON.
        recipe_id: The embedding recipe that it fills.
        describer: The describer that works on it.
        encoder: The encoder that works on it.
        request_id: What makes a repeated request the same job; None when the caller gave none.
        state: Where it stands.
        progress: What it has done so far, as JSON; the enricher's own words.
        problem: Why it failed: reason, message and metadata, as JSON.
        cancel_requested: Somebody asked it to stop.
        attempts: How often an enricher has taken it.
        create_time: When it was made, UTC.
        start_time: When an enricher first took it.
        end_time: When it ended.
        update_time: When anything of it last changed.
    """

    job_id: str
    catalog: str
    spec: Mapping[str, Any]
    recipe_id: str
    describer: str
    encoder: str
    request_id: str | None
    state: JobState
    progress: Mapping[str, Any]
    problem: Mapping[str, Any] | None
    cancel_requested: bool
    attempts: int
    create_time: datetime
    start_time: datetime | None
    end_time: datetime | None
    update_time: datetime


@dataclass(frozen=True)
class ClaimedJob:
    """A job, and the right to work on it."""

    job: JobRow
    lease: Lease


class Jobs:
    """The jobs. Safe for any thread."""

    def __init__(self, *, database: Database):
        self._database = database

    def create(
        self,
        catalog: str,
        spec: Mapping[str, Any],
        recipe_id: str,
        describer: str,
        encoder: str,
        request_id: str | None = None,
    ) -> JobRow:
        """Puts a job into the queue.

        Args:
            catalog: The catalog to work on.
            spec: What is asked, as JSON.
            recipe_id: The embedding recipe to fill.
            describer: The describer to use.
            encoder: The encoder to use.
            request_id: The same one again returns the job that it made, whatever else is given.

        Raises:
            ServiceError: CATALOG_NOT_FOUND.
        """
        request_id = request_id or None
        try:
            with self._database.write() as connection:
                catalogs.get(connection, catalog)
                earlier = _of_request(connection, catalog, request_id)
                if earlier is not None:
                    return earlier
                moment = now()
                job_id = uuid.uuid4().hex
                connection.execute(
                    schema.jobs.insert().values(
                        job_id=job_id,
                        catalog=catalog,
                        spec=dict(spec),
                        recipe_id=recipe_id,
                        describer=describer,
                        encoder=encoder,
                        request_id=request_id,
                        state=JobState.QUEUED,
                        progress={},
                        problem=None,
                        cancel_requested=False,
                        attempts=0,
                        create_time=moment,
                        update_time=moment,
                    )
                )
                return _get(connection, job_id)
        except sa.exc.IntegrityError:  # PostgreSQL: the same request came in twice at once
            with self._database.read() as connection:
                earlier = _of_request(connection, catalog, request_id)
            if earlier is None:
                raise
            return earlier

    def get(self, job_id: str) -> JobRow:
        """A job.

        Raises:
            ServiceError: JOB_NOT_FOUND.
        """
        with self._database.read() as connection:
            return _get(connection, job_id)

    def list(self, catalog: str | None = None, page_size: int = 100, after: str | None = None) -> list[JobRow]:
        """Jobs, newest first.

        Args:
            catalog: Only this catalog's; None means all.
            page_size: At most so many.
            after: Id of the last job of the page before.

        Raises:
            ServiceError: INVALID_PAGE_TOKEN when there is no such job (any more).
        """
        query = schema.jobs.select().order_by(schema.jobs.c.number.desc()).limit(page_size)
        if catalog is not None:
            query = query.where(schema.jobs.c.catalog == catalog)
        with self._database.read() as connection:
            if after is not None:
                number = connection.execute(
                    sa.select(schema.jobs.c.number).where(schema.jobs.c.job_id == after)
                ).scalar_one_or_none()
                if number is None:
                    raise ServiceError(
                        "INVALID_PAGE_TOKEN", f"the page of jobs after {after} cannot be found: start at the first page"
                    )
                query = query.where(schema.jobs.c.number < number)
            return [_row(row) for row in connection.execute(query).mappings()]

    def active(self, catalog: str) -> Sequence[JobRow]:
        """The jobs of a catalog that have not ended, oldest first."""
        query = (
            schema.jobs.select()
            .where(schema.jobs.c.catalog == catalog)
            .where(schema.jobs.c.state.in_([JobState.QUEUED, JobState.RUNNING]))
            .order_by(schema.jobs.c.number)
        )
        with self._database.read() as connection:
            return [_row(row) for row in connection.execute(query).mappings()]

    def claim(self, owner: str, ttl_seconds: float) -> ClaimedJob | None:
        """Takes the oldest job that waits, or that runs under a lease that has run out.

        Args:
            owner: Who takes it.
            ttl_seconds: How long the lease lasts without being renewed.

        Returns:
            The job with its lease, or None when there is nothing to do. No two callers get the same job.
        """
        jobs, held = schema.jobs, schema.leases
        moment = now()
        live = sa.exists().where(
            held.c.name == sa.literal(_PREFIX).concat(jobs.c.job_id), leases.is_live(moment, ttl_seconds)
        )
        query = (
            sa.select(jobs.c.job_id)
            .where(jobs.c.state.in_([JobState.QUEUED, JobState.RUNNING]), ~live)
            .order_by(jobs.c.number)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        with self._database.write() as connection:
            job_id = connection.execute(query).scalar_one_or_none()
            if job_id is None:
                return None
            lease = leases.acquire(connection, _PREFIX + job_id, owner, ttl_seconds)
            if lease is None:
                return None
            connection.execute(
                jobs.update()
                .where(jobs.c.job_id == job_id)
                .values(
                    state=JobState.RUNNING,
                    attempts=jobs.c.attempts + 1,
                    start_time=sa.func.coalesce(jobs.c.start_time, sa.literal(moment, schema.UtcDateTime)),
                    update_time=moment,
                )
            )
            return ClaimedJob(job=_get(connection, job_id), lease=lease)

    def progress(self, job_id: str, lease: Lease, progress: Mapping[str, Any]) -> None:
        """Records what a job has done so far.

        Raises:
            ServiceError: LEASE_LOST when another enricher has taken the job; JOB_NOT_FOUND when it is gone.
        """
        with self._database.write() as connection:
            _held(connection, job_id, lease)
            _update(connection, job_id, progress=dict(progress))

    def finish(
        self,
        job_id: str,
        lease: Lease,
        state: str,
        problem: Mapping[str, Any] | None,
        progress: Mapping[str, Any],
    ) -> JobRow:
        """Ends a job and gives its lease back.

        Args:
            job_id: The job.
            lease: The lease that it was claimed with.
            state: SUCCEEDED, FAILED or CANCELLED.
            problem: Why it failed.
            progress: What it has done.

        Raises:
            ServiceError: LEASE_LOST when another enricher has taken the job; JOB_NOT_FOUND when it is gone.
        """
        end = JobState(state)
        assert end.ended, end
        with self._database.write() as connection:
            _held(connection, job_id, lease)
            _update(
                connection,
                job_id,
                state=end,
                problem=None if problem is None else dict(problem),
                progress=dict(progress),
                end_time=now(),
            )
            leases.release(connection, lease)
            return _get(connection, job_id)

    def requeue(self, job_id: str, lease: Lease) -> None:
        """Puts a job back into the queue at once, for an enricher that has to stop.

        Raises:
            ServiceError: LEASE_LOST when another enricher has taken the job; JOB_NOT_FOUND when it is gone.
        """
        with self._database.write() as connection:
            _held(connection, job_id, lease)
            _update(connection, job_id, state=JobState.QUEUED)
            leases.release(connection, lease)

    def request_cancel(self, job_id: str) -> JobRow:
        """Asks a job to stop. One that nobody works on is CANCELLED at once, another when its enricher has seen it.

        Raises:
            ServiceError: JOB_NOT_FOUND, or JOB_STATE when it has ended.
        """
        with self._database.write() as connection:
            job = _get(connection, job_id, lock=True)
            if job.state.ended:
                raise ServiceError(
                    "JOB_STATE",
                    f"the job {job_id} has ended ({job.state}) and cannot be cancelled",
                    job_id=job_id,
                    state=job.state,
                )
            name = _PREFIX + job_id
            if leases.acquire(connection, name, "cancel", 0.0) is not None:
                _update(connection, job_id, state=JobState.CANCELLED, cancel_requested=True, end_time=now())
            else:
                _update(connection, job_id, cancel_requested=True)
            return _get(connection, job_id)

    def cancel_requested(self, job_id: str) -> bool:
        """Whether somebody asked the job to stop.

        Raises:
            ServiceError: JOB_NOT_FOUND.
        """
        return self.get(job_id).cancel_requested


_PREFIX = "job:"


def _held(connection: sa.Connection, job_id: str, lease: Lease) -> None:
    assert lease.name == _PREFIX + job_id, (lease.name, job_id)
    _get(connection, job_id)
    leases.check(connection, lease)


def _update(connection: sa.Connection, job_id: str, **values: Any) -> None:
    query = schema.jobs.update().where(schema.jobs.c.job_id == job_id)
    connection.execute(query.values(update_time=now(), **values))


def _get(connection: sa.Connection, job_id: str, *, lock: bool = False) -> JobRow:
    query = schema.jobs.select().where(schema.jobs.c.job_id == job_id)
    row = connection.execute(query.with_for_update() if lock else query).mappings().one_or_none()
    if row is None:
        raise ServiceError("JOB_NOT_FOUND", f"there is no job {job_id}: see the list of jobs", job_id=job_id)
    return _row(row)


def _of_request(connection: sa.Connection, catalog: str, request_id: str | None) -> JobRow | None:
    if request_id is None:
        return None
    query = schema.jobs.select().where(schema.jobs.c.catalog == catalog, schema.jobs.c.request_id == request_id)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _row(row)


def _row(row: sa.RowMapping) -> JobRow:
    values = {name: value for name, value in row.items() if name != "number"}
    return JobRow(**{**values, "state": JobState(row["state"])})
