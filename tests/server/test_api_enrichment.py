"""EnrichmentService over a real socket, without an enricher; and jobs that upserts start by themselves."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

import grpc
import pytest
from dmesr.v1 import embeddings_pb2, items_pb2
from dmesr.v1 import enrichment_pb2 as pb
from running_server import RunningServer
from wire import Stubs, failure_of, reason

INSERTED, UPDATED = items_pb2.ROW_OUTCOME_INSERTED, items_pb2.ROW_OUTCOME_UPDATED
UNCHANGED, REJECTED = items_pb2.ROW_OUTCOME_UNCHANGED, items_pb2.ROW_OUTCOME_REJECTED


def add(stubs: Stubs, catalog: str, **titles: str) -> None:
    items = [
        items_pb2.Item(item_id=item_id, attributes=[items_pb2.Attribute(name="title", values=[title])])
        for item_id, title in titles.items()
    ]
    list(stubs.items.UpsertItems(iter([items_pb2.UpsertItemsRequest(catalog=catalog, items=items)])))


def start(stubs: Stubs, catalog: str, *, request_id: str = "", **spec: object) -> pb.Job:
    request = pb.StartJobRequest(catalog=catalog, spec=pb.JobSpec(**spec), request_id=request_id)
    return stubs.enrichment.StartJob(request).job


def get(stubs: Stubs, job_id: str) -> pb.Job:
    return stubs.enrichment.GetJob(pb.GetJobRequest(job_id=job_id)).job


def test_a_job_is_kept_as_it_was_asked(stubs: Stubs, catalog: str):
    add(stubs, catalog, a="A", b="B")
    request_id = str(uuid.uuid4())
    spec = {"recipe": "first", "routes": ["image", "text"], "item_ids": ["b", "a", "b"], "limit": 5}
    job = start(stubs, catalog, request_id=request_id, retry_failed=True, **spec)
    assert job.state == pb.JOB_STATE_QUEUED
    assert (job.catalog, job.describer, len(job.recipe_id)) == (catalog, "palette", 16)
    assert job.spec == pb.JobSpec(
        recipe="first", routes=["image", "text"], item_ids=["b", "a"], limit=5, retry_failed=True
    )
    assert start(stubs, catalog, request_id=request_id.upper(), **spec).job_id == job.job_id
    assert start(stubs, catalog, **spec).job_id != job.job_id
    assert get(stubs, job.job_id) == job
    recipes = stubs.embeddings.ListRecipes(embeddings_pb2.ListRecipesRequest(catalog=catalog)).recipes
    assert [(list(recipe.names), recipe.is_mllm) for recipe in recipes] == [(["first"], False)]
    assert set(recipes[0].description_recipes) == {"text", "image", "hybrid"}


def test_jobs_are_listed_newest_first(stubs: Stubs, catalog: str):
    add(stubs, catalog, a="A")
    started = [start(stubs, catalog).job_id for _ in range(3)]
    first = stubs.enrichment.ListJobs(pb.ListJobsRequest(catalog=catalog, page_size=2))
    assert [job.job_id for job in first.jobs] == started[:0:-1]
    request = pb.ListJobsRequest(catalog=catalog, page_size=2, page_token=first.next_page_token)
    second = stubs.enrichment.ListJobs(request)
    assert [job.job_id for job in second.jobs] == started[:1]
    assert second.next_page_token == ""
    everywhere = stubs.enrichment.ListJobs(pb.ListJobsRequest())
    assert {*started} <= {job.job_id for job in everywhere.jobs}
    wrong = pb.ListJobsRequest(page_token=first.next_page_token)
    assert failure_of(lambda: stubs.enrichment.ListJobs(wrong)).reason == "INVALID_PAGE_TOKEN"
    nowhere = pb.ListJobsRequest(catalog="nowhere")
    assert failure_of(lambda: stubs.enrichment.ListJobs(nowhere)).reason == "CATALOG_NOT_FOUND"


def test_a_waiting_job_is_cancelled_at_once_and_can_be_retried(stubs: Stubs, catalog: str):
    add(stubs, catalog, a="A")
    job = start(stubs, catalog, limit=3)
    retry = pb.RetryJobRequest(job_id=job.job_id)
    failure = failure_of(lambda: stubs.enrichment.RetryJob(retry))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "JOB_STATE")
    watch = stubs.enrichment.WatchJob(pb.WatchJobRequest(job_id=job.job_id))
    assert next(watch).job.state == pb.JOB_STATE_QUEUED
    cancel = pb.CancelJobRequest(job_id=job.job_id)
    assert stubs.enrichment.CancelJob(cancel).job.state == pb.JOB_STATE_CANCELLED
    assert [answer.job.state for answer in watch] == [pb.JOB_STATE_CANCELLED]
    assert failure_of(lambda: stubs.enrichment.CancelJob(cancel)).reason == "JOB_STATE"
    again = stubs.enrichment.RetryJob(retry).job
    assert (again.state, again.spec.limit, again.spec.retry_failed) == (pb.JOB_STATE_QUEUED, 3, True)
    assert again.job_id != job.job_id


@pytest.mark.parametrize(
    ("spec", "said", "fields"),
    [
        ({"routes": ["smell"]}, "UNKNOWN_ROUTE", []),
        ({"describer": "oracle"}, "DESCRIBER_UNAVAILABLE", []),
        ({"item_ids": ["a", "nobody"]}, "ITEM_NOT_FOUND", []),
        ({"item_ids": [""]}, "INVALID_FIELD", ["spec.item_ids[0]"]),
        ({"limit": -1}, "INVALID_FIELD", ["spec.limit"]),
        ({"recipe": "a b"}, "INVALID_FIELD", ["spec.recipe"]),
        ({"item_ids": [str(n) for n in range(2_001)]}, "REQUEST_TOO_LARGE", []),
    ],
)
def test_bad_jobs_are_refused_and_not_kept(stubs: Stubs, catalog: str, spec: dict, said: str, fields: list[str]):
    add(stubs, catalog, a="A")
    failure = failure_of(lambda: start(stubs, catalog, **spec))
    assert (failure.reason, failure.fields) == (said, fields)
    assert list(stubs.enrichment.ListJobs(pb.ListJobsRequest(catalog=catalog)).jobs) == []


def test_bad_requests_about_jobs(stubs: Stubs, catalog: str):
    failure = failure_of(lambda: start(stubs, catalog, request_id="not a uuid"))
    assert (failure.reason, failure.fields) == ("INVALID_FIELD", ["request_id"])
    assert failure_of(lambda: get(stubs, "no-such-job")).reason == "JOB_NOT_FOUND"
    assert failure_of(lambda: get(stubs, "")).fields == ["job_id"]
    watch = pb.WatchJobRequest(job_id="no-such-job")
    assert failure_of(lambda: list(stubs.enrichment.WatchJob(watch))).reason == "JOB_NOT_FOUND"


def test_an_estimate_counts_the_work_and_changes_nothing(stubs: Stubs, catalog: str):
    add(stubs, catalog, a="A", b="B", c="C")
    estimate = stubs.enrichment.EstimateJob(pb.EstimateJobRequest(catalog=catalog))
    assert estimate.items == 3
    counts = {r.route: (r.applicable, r.reused, r.to_describe, r.to_encode) for r in estimate.routes}
    assert counts == {
        "original": (3, 0, 0, 3),
        "text": (3, 0, 3, 3),
        "image": (0, 0, 0, 0),
        "hybrid": (0, 0, 0, 0),
    }
    assert not estimate.HasField("tokens")
    assert estimate.store_bytes > 0
    assert estimate.basis
    assert list(stubs.enrichment.ListJobs(pb.ListJobsRequest(catalog=catalog)).jobs) == []


def _imported(*rows: tuple[str, str, str]) -> list[pb.ImportedDescription]:
    return [pb.ImportedDescription(item_id=item_id, route=route, text=text) for item_id, route, text in rows]


def test_descriptions_made_elsewhere_are_imported_and_read_with_their_provenance(stubs: Stubs, catalog: str):
    add(stubs, catalog, a="A", b="B")
    first = pb.ImportDescriptionsRequest(
        catalog=catalog,
        model="gpt-x-1",
        is_mllm=True,
        recipe="theirs",
        descriptions=_imported(
            ("b", "hybrid", "hybrid of b"),
            ("a", "image", "picture of a"),
            ("a", "text", "text of a"),
            ("a", "text", "text of a"),
            ("a", "text", "another text of a"),
            ("nobody", "text", "x"),
            ("a", "smell", "x"),
            ("b", "text", "  "),
        ),
    )
    # Model, recipe and catalog are those of the first message.
    second = pb.ImportDescriptionsRequest(descriptions=_imported(("b", "text", "text of b")))
    answers = list(stubs.enrichment.ImportDescriptions(iter([first, second])))
    results = [result for answer in answers for result in answer.results]
    said = [reason(r.problem) if r.outcome == REJECTED else r.outcome for r in results]
    assert said == [
        INSERTED,
        INSERTED,
        INSERTED,
        UNCHANGED,
        "DUPLICATE_ITEM_ID",
        "ITEM_NOT_FOUND",
        "UNKNOWN_ROUTE",
        "DESCRIPTION_UNUSABLE",
        INSERTED,
    ]

    request = pb.GetDescriptionsRequest(catalog=catalog, item_ids=["b", "nobody", "a"], recipe="theirs")
    answer = stubs.enrichment.GetDescriptions(request)
    assert [(d.item_id, d.route, d.text) for d in answer.descriptions] == [
        ("b", "text", "text of b"),
        ("b", "hybrid", "hybrid of b"),
        ("a", "text", "text of a"),
        ("a", "image", "picture of a"),
    ]
    told = answer.descriptions[0].provenance
    assert (told.describer, told.model, told.is_mllm) == ("import", "gpt-x-1", True)
    assert told.create_time.seconds > 1_700_000_000
    assert list(answer.missing_item_ids) == ["nobody"]
    assert dict(answer.original_texts) == {"a": "title: A", "b": "title: B"}
    assert not any(d.stale for d in answer.descriptions if d.route == "text")

    add(stubs, catalog, a="A, changed")
    stale = {(d.item_id, d.route) for d in stubs.enrichment.GetDescriptions(request).descriptions if d.stale}
    assert ("a", "text") in stale
    assert ("b", "text") not in stale


def test_bad_reads_and_imports_of_descriptions(stubs: Stubs, catalog: str):
    unknown = pb.GetDescriptionsRequest(catalog=catalog, recipe="nobody")
    assert failure_of(lambda: stubs.enrichment.GetDescriptions(unknown)).reason == "RECIPE_NOT_FOUND"
    start(stubs, catalog)  # makes the recipe "default"
    many = pb.GetDescriptionsRequest(catalog=catalog, item_ids=map(str, range(1_001)))
    assert failure_of(lambda: stubs.enrichment.GetDescriptions(many)).reason == "REQUEST_TOO_LARGE"

    def imported(**fields: object) -> str:
        request = pb.ImportDescriptionsRequest(catalog=catalog, **fields)
        failure = failure_of(lambda: list(stubs.enrichment.ImportDescriptions(iter([request]))))
        return failure.fields[0] if failure.fields else failure.reason

    assert imported() == "model"
    assert imported(model="m", recipe="A B") == "recipe"
    assert imported(model="m", descriptions=[pb.ImportedDescription()] * 501) == "REQUEST_TOO_LARGE"


def test_upserts_start_one_waiting_job(start_server: Callable[..., RunningServer]):
    server = start_server(enricher=False, enrichment__auto=True)
    with grpc.insecure_channel(server.address) as channel:
        stubs = Stubs.of(channel)
        assert list(stubs.enrichment.ListJobs(pb.ListJobsRequest()).jobs) == []
        for number in range(4):
            add(stubs, "", **{str(number): "A film"})
        add(stubs, "", **{"": "refused"})
        (job,) = stubs.enrichment.ListJobs(pb.ListJobsRequest()).jobs
        assert job.state == pb.JOB_STATE_QUEUED
        stubs.enrichment.CancelJob(pb.CancelJobRequest(job_id=job.job_id))
        add(stubs, "", **{"": "refused"})
        assert len(stubs.enrichment.ListJobs(pb.ListJobsRequest()).jobs) == 1

    # What was written before a crash, and not enriched, is caught up with at the next start.
    server.kill()
    server.restart()
    with grpc.insecure_channel(server.address) as channel:
        stubs = Stubs.of(channel)
        deadline = time.monotonic() + 20
        while (newest := stubs.enrichment.ListJobs(pb.ListJobsRequest()).jobs[0]).job_id == job.job_id:
            assert time.monotonic() < deadline, server.log
            time.sleep(0.05)
        assert newest.state == pb.JOB_STATE_QUEUED
