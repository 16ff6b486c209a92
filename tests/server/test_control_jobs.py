from __future__ import annotations

import time

import pytest
from dmesr_server.control import Control, JobState
from dmesr_server.errors import ServiceError
from store_workers import claim_all, in_processes, in_threads

SHORT = 0.05  # s
LONG = 1.0  # s: a lease that a loaded machine renews in time


@pytest.fixture
def control(control_url):
    control = Control(control_url)
    control.migrate()
    control.catalogs.create("films")
    control.catalogs.create("games")
    yield control
    control.close()


@pytest.fixture
def jobs(control):
    return control.jobs


def create(jobs, catalog="films", request_id=None, **spec):
    return jobs.create(catalog, spec, "e1", "palette", "mini", request_id)


def refused(act, *arguments) -> str:
    with pytest.raises(ServiceError) as caught:
        act(*arguments)
    return caught.value.reason


def test_the_life_of_a_job(jobs):
    made = create(jobs, routes=["text"], limit=5)
    assert (made.state, made.spec, made.progress, made.problem) == (
        "QUEUED",
        {"routes": ["text"], "limit": 5},
        {},
        None,
    )
    assert (made.recipe_id, made.describer, made.encoder, made.attempts) == ("e1", "palette", "mini", 0)
    assert (made.start_time, made.end_time) == (None, None)
    assert jobs.get(made.job_id) == made
    work = jobs.claim("enricher-1", 60)
    assert (work.job.state, work.job.attempts, work.lease.owner) == (JobState.RUNNING, 1, "enricher-1")
    assert work.job.start_time >= made.create_time
    jobs.progress(made.job_id, work.lease, {"items_done": 3})
    now = jobs.get(made.job_id)
    assert now.progress == {"items_done": 3}
    assert now.update_time > work.job.update_time
    ended = jobs.finish(made.job_id, work.lease, "SUCCEEDED", None, {"items_done": 5})
    assert (ended.state, ended.progress, ended.problem) == (JobState.SUCCEEDED, {"items_done": 5}, None)
    assert ended.state.ended
    assert ended.end_time >= ended.start_time
    assert jobs.claim("enricher-1", 60) is None
    assert refused(jobs.progress, made.job_id, work.lease, {}) == "LEASE_LOST"
    assert refused(jobs.finish, made.job_id, work.lease, "FAILED", None, {}) == "LEASE_LOST"
    assert jobs.get(made.job_id) == ended


def test_a_failed_job_says_why(jobs):
    made = create(jobs)
    work = jobs.claim("me", 60)
    problem = {"reason": "DESCRIBER_UNAVAILABLE", "message": "no weights", "metadata": {"describer": "vllm"}}
    assert jobs.finish(made.job_id, work.lease, "FAILED", problem, {}).problem == problem


def test_unknown_jobs(jobs):
    assert refused(jobs.get, "nobody") == "JOB_NOT_FOUND"
    assert refused(jobs.request_cancel, "nobody") == "JOB_NOT_FOUND"
    assert refused(jobs.cancel_requested, "nobody") == "JOB_NOT_FOUND"


def test_the_same_request_is_the_same_job(jobs):
    first = create(jobs, request_id="6e7f", limit=1)
    assert create(jobs, request_id="6e7f", limit=2) == first
    assert create(jobs, request_id="other").job_id != first.job_id
    assert create(jobs, catalog="games", request_id="6e7f").job_id != first.job_id
    assert create(jobs, request_id="").job_id != create(jobs, request_id="").job_id
    assert create(jobs).job_id != create(jobs).job_id
    work = jobs.claim("me", 60)
    jobs.finish(first.job_id, work.lease, "SUCCEEDED", None, {})
    assert create(jobs, request_id="6e7f").state == JobState.SUCCEEDED, "also when it has ended"


def test_threads_with_the_same_request(jobs):
    made = in_threads(lambda _: create(jobs, request_id="6e7f"), [(number,) for number in range(12)])
    assert len({job.job_id for job in made}) == 1
    assert len(jobs.list()) == 1


def test_oldest_first(jobs):
    made = [create(jobs).job_id for _ in range(4)]
    assert [jobs.claim("me", 60).job.job_id for _ in range(4)] == made
    assert jobs.claim("me", 60) is None


def test_a_silent_enricher_is_replaced_and_then_refused(control, jobs):
    made = create(jobs)
    old = jobs.claim("old", SHORT)
    time.sleep(1.5 * SHORT)
    jobs.progress(made.job_id, old.lease, {"items_done": 1})  # late, but still the only one
    new = jobs.claim("new", 60)
    assert (new.job.job_id, new.job.attempts, new.lease.fence) == (made.job_id, 2, old.lease.fence + 1)
    assert new.job.progress == {"items_done": 1}
    assert new.job.start_time == old.job.start_time
    assert refused(jobs.progress, made.job_id, old.lease, {"items_done": 9}) == "LEASE_LOST"
    assert refused(jobs.finish, made.job_id, old.lease, "SUCCEEDED", None, {}) == "LEASE_LOST"
    assert refused(jobs.requeue, made.job_id, old.lease) == "LEASE_LOST"
    assert refused(control.leases.check, old.lease) == "LEASE_LOST"
    assert refused(control.leases.renew, old.lease) == "LEASE_LOST"
    assert (jobs.get(made.job_id).state, jobs.get(made.job_id).progress) == ("RUNNING", {"items_done": 1})
    jobs.finish(made.job_id, new.lease, "SUCCEEDED", None, {})


def test_renewing_keeps_a_job(control, jobs):
    create(jobs)
    lease = jobs.claim("me", LONG).lease
    for _ in range(3):
        time.sleep(0.4 * LONG)
        lease = control.leases.renew(lease)
        assert jobs.claim("you", 60) is None


def test_an_enricher_that_stops_puts_its_job_back_at_once(jobs):
    made = create(jobs)
    work = jobs.claim("old", 60)
    jobs.requeue(made.job_id, work.lease)
    assert jobs.get(made.job_id).state == JobState.QUEUED
    assert jobs.claim("new", 60).job.job_id == made.job_id


def test_cancelling_a_job_that_waits(jobs):
    made = create(jobs)
    cancelled = jobs.request_cancel(made.job_id)
    assert (cancelled.state, cancelled.cancel_requested) == (JobState.CANCELLED, True)
    assert cancelled.end_time is not None
    assert jobs.claim("me", 60) is None
    assert refused(jobs.request_cancel, made.job_id) == "JOB_STATE"


def test_cancelling_a_job_that_runs(jobs):
    made = create(jobs)
    work = jobs.claim("me", 60)
    assert jobs.cancel_requested(made.job_id) is False
    asked = jobs.request_cancel(made.job_id)
    assert (asked.state, asked.cancel_requested) == (JobState.RUNNING, True)
    assert jobs.cancel_requested(made.job_id) is True
    assert jobs.request_cancel(made.job_id).state == JobState.RUNNING, "asking twice does no harm"
    assert jobs.finish(made.job_id, work.lease, "CANCELLED", None, {}).state == JobState.CANCELLED


def test_cancelling_a_job_whose_enricher_died(jobs):
    made = create(jobs)
    old = jobs.claim("old", 0)
    assert jobs.request_cancel(made.job_id).state == JobState.CANCELLED
    assert refused(jobs.progress, made.job_id, old.lease, {}) == "LEASE_LOST"
    assert jobs.claim("new", 60) is None


def test_lists_are_newest_first_and_page(jobs):
    made = [create(jobs, catalog="films" if number % 2 else "games").job_id for number in range(7)]
    made.reverse()
    assert [job.job_id for job in jobs.list()] == made
    assert [job.job_id for job in jobs.list(None, 3)] == made[:3]
    assert [job.job_id for job in jobs.list(None, 3, made[2])] == made[3:6]
    assert [job.job_id for job in jobs.list(None, 3, made[6])] == []
    films = jobs.list("films", 2)
    assert len(films) == 2
    assert [job.catalog for job in films + jobs.list("films", 9, films[-1].job_id)] == ["films"] * 3
    assert refused(jobs.list, None, 3, "nobody") == "INVALID_PAGE_TOKEN"
    assert jobs.list("nowhere") == []


def test_active_jobs_of_a_catalog(jobs):
    waits, runs, ended = create(jobs), create(jobs), create(jobs)
    create(jobs, catalog="games")
    jobs.request_cancel(ended.job_id)
    assert jobs.claim("me", 60).job.job_id == waits.job_id
    assert [job.job_id for job in jobs.active("films")] == [waits.job_id, runs.job_id]


def test_threads_never_claim_the_same_job(control_url, jobs):
    made = {create(jobs).job_id for _ in range(40)}
    claimed = [job_id for each in in_threads(claim_all, [(control_url, f"t{n}") for n in range(6)]) for job_id in each]
    assert len(claimed) == 40
    assert set(claimed) == made


def test_processes_never_claim_the_same_job(control_url, jobs):
    made = {create(jobs).job_id for _ in range(60)}
    claimed = [
        job_id for each in in_processes(claim_all, [(control_url, f"p{n}") for n in range(3)]) for job_id in each
    ]
    assert len(claimed) == 60
    assert set(claimed) == made
    assert {job.state for job in jobs.list()} == {JobState.SUCCEEDED}
    assert {job.attempts for job in jobs.list()} == {1}


def test_many_threads_race_for_one_expired_job(jobs):
    made = create(jobs)
    jobs.claim("dead", 0)
    won = [work for work in in_threads(jobs.claim, [(f"t{n}", 60) for n in range(16)]) if work]
    assert len(won) == 1
    jobs.progress(made.job_id, won[0].lease, {})
