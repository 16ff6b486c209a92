"""Lists, corrections, figures and prompts of descriptions over a real socket, without an enricher."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest
from dmesr.v1 import enrichment_pb2 as pb
from dmesr.v1 import items_pb2
from running_server import RunningServer
from wire import Stubs, failure_of

RECIPE = "theirs"


@pytest.fixture
def described(stubs: Stubs, catalog: str) -> str:
    """A catalog of five items; four have a text, two of them a hybrid text."""
    items = [
        items_pb2.Item(item_id=str(n), attributes=[items_pb2.Attribute(name="title", values=[f"Film {n}"])])
        for n in range(1, 6)
    ]
    list(stubs.items.UpsertItems(iter([items_pb2.UpsertItemsRequest(catalog=catalog, items=items)])))
    rows = [("1", "hybrid", "both of 1"), *((str(n), "text", f"text of {n}") for n in (1, 2, 4, 5))]
    rows += [("5", "hybrid", "both of 5"), ("5", "reflect", "thoughts on 5")]
    request = pb.ImportDescriptionsRequest(
        catalog=catalog,
        model="m-1",
        is_mllm=True,
        recipe=RECIPE,
        descriptions=[
            pb.ImportedDescription(item_id=item_id, route=route, text=text, author="anna" if item_id == "2" else "")
            for item_id, route, text in rows
        ],
    )
    (answer,) = stubs.enrichment.ImportDescriptions(iter([request]))
    assert {result.outcome for result in answer.results} == {items_pb2.ROW_OUTCOME_INSERTED}
    return catalog


def pages(stubs: Stubs, catalog: str, **asked: object) -> list[pb.ListDescriptionsResponse]:
    found: list[pb.ListDescriptionsResponse] = []
    while not found or found[-1].next_page_token:
        token = found[-1].next_page_token if found else ""
        request = pb.ListDescriptionsRequest(catalog=catalog, recipe=RECIPE, page_token=token, **asked)
        found.append(stubs.enrichment.ListDescriptions(request))
    return found


def edit(stubs: Stubs, catalog: str, **asked: object) -> pb.EditDescriptionResponse:
    given = {"catalog": catalog, "recipe": RECIPE, "item_id": "1", "route": "text", "author": "anna", **asked}
    return stubs.enrichment.EditDescription(pb.EditDescriptionRequest(**given))


def test_all_descriptions_page_by_page(stubs: Stubs, described: str):
    expected = [
        ("1", "text"), ("1", "hybrid"), ("2", "text"), ("4", "text"),
        ("5", "text"), ("5", "hybrid"), ("5", "reflect"),
    ]  # fmt: skip
    for size, count in ((1, 5), (2, 3), (5, 1), (100, 1)):
        found = pages(stubs, described, page_size=size)
        assert len(found) == count
        assert [(one.item_id, one.route) for page in found for one in page.descriptions] == expected
        assert len({page.recipe_id for page in found}) == 1
    told = [one.provenance for page in found for one in page.descriptions]
    assert {(one.describer, one.model) for one in told} == {("import", "m-1")}
    assert [one.author for one in told] == ["", "", "anna", "", "", "", ""]


def test_a_token_is_good_for_its_own_list_only(stubs: Stubs, described: str):
    token = pages(stubs, described, page_size=2)[0].next_page_token
    for other in ({"include_failures": True}, {"page_token": "nonsense"}):
        request = pb.ListDescriptionsRequest(**{"catalog": described, "recipe": RECIPE, "page_token": token, **other})
        failure = failure_of(lambda asked=request: stubs.enrichment.ListDescriptions(asked))  # type: ignore[misc]
        assert failure.reason == "INVALID_PAGE_TOKEN"
    unknown = pb.ListDescriptionsRequest(catalog=described, recipe="nobody")
    assert failure_of(lambda: stubs.enrichment.ListDescriptions(unknown)).reason == "RECIPE_NOT_FOUND"


def test_pages_stay_below_the_message_limit(start_server: Callable[..., RunningServer]):
    server = start_server(enricher=False, limits__max_message_bytes=256 * 1024)
    with grpc.insecure_channel(server.address) as channel:
        stubs = Stubs.of(channel)
        items = [items_pb2.Item(item_id=f"{n:02}") for n in range(12)]
        list(stubs.items.UpsertItems(iter([items_pb2.UpsertItemsRequest(items=items)])))
        batches = (
            pb.ImportDescriptionsRequest(
                model="m",
                recipe=RECIPE,
                descriptions=[pb.ImportedDescription(item_id=f"{n:02}", route="text", text="x" * 60_000)],
            )
            for n in range(12)
        )
        list(stubs.enrichment.ImportDescriptions(batches))
        found = pages(stubs, "", page_size=1_000)
        assert len(found) == 4
        assert all(page.ByteSize() < 256 * 1024 for page in found)
        assert [one.item_id for page in found for one in page.descriptions] == [f"{n:02}" for n in range(12)]


def test_a_correction_is_read_with_what_it_replaces(stubs: Stubs, described: str):
    made = edit(stubs, described, text="by anna").description
    assert (made.text, made.stale, made.replaced.text) == ("by anna", False, "text of 1")
    assert (made.provenance.describer, made.provenance.author, made.provenance.is_mllm) == ("person", "anna", False)
    assert made.provenance.description_recipe_id == made.replaced.provenance.description_recipe_id
    request = pb.GetDescriptionsRequest(catalog=described, item_ids=["1"], recipe=RECIPE)
    assert stubs.enrichment.GetDescriptions(request).descriptions[0] == made
    assert pages(stubs, described)[0].descriptions[0] == made
    request = pb.GetEnrichmentStatsRequest(catalog=described, recipe=RECIPE)
    stats = stubs.enrichment.GetEnrichmentStats(request)
    assert stats.items == 5
    by_route = {one.route: one for one in stats.routes}
    assert list(by_route) == ["text", "image", "hybrid", "reflect"]
    text = by_route["text"]
    assert (text.applicable, text.described, text.corrected, text.mean_words) == (5, 4, 1, (2 + 3 * 3) / 4)
    assert not text.HasField("tokens_per_second")
    assert not text.HasField("refinement")
    back = edit(stubs, described, withdraw=True)
    assert back.description == made.replaced
    alone = edit(stubs, described, item_id="3", text="by anna").description
    assert not alone.HasField("replaced")
    assert not edit(stubs, described, item_id="3", withdraw=True).HasField("description")


@pytest.mark.parametrize(
    ("asked", "code", "reason", "fields"),
    [
        ({"text": "x", "item_id": "nobody"}, "NOT_FOUND", "ITEM_NOT_FOUND", []),
        ({"text": "x", "item_id": ""}, "INVALID_ARGUMENT", "INVALID_FIELD", ["item_id"]),
        ({"text": "x", "route": "smell"}, "INVALID_ARGUMENT", "UNKNOWN_ROUTE", []),
        ({"text": "x", "author": ""}, "INVALID_ARGUMENT", "INVALID_FIELD", ["author"]),
        ({"text": "x", "author": "a\nb"}, "INVALID_ARGUMENT", "INVALID_FIELD", ["author"]),
        ({"text": " "}, "INVALID_ARGUMENT", "INVALID_FIELD", ["text"]),
        ({"text": "x" * 65_537}, "INVALID_ARGUMENT", "INVALID_FIELD", ["text"]),
        ({}, "INVALID_ARGUMENT", "INVALID_FIELD", ["change"]),
        ({"withdraw": False}, "INVALID_ARGUMENT", "INVALID_FIELD", ["change"]),
        ({"withdraw": True}, "NOT_FOUND", "CORRECTION_NOT_FOUND", []),
        ({"text": "x", "recipe": "nobody"}, "NOT_FOUND", "RECIPE_NOT_FOUND", []),
    ],
)
def test_bad_corrections(
    stubs: Stubs, described: str, asked: dict[str, object], code: str, reason: str, fields: list[str]
):
    failure = failure_of(lambda: edit(stubs, described, **asked))
    assert (failure.code.name, failure.reason, failure.fields) == (code, reason, fields)


def test_a_correction_starts_the_automatic_job(start_server: Callable[..., RunningServer]):
    server = start_server(enricher=False, enrichment__auto=True)
    with grpc.insecure_channel(server.address) as channel:
        stubs = Stubs.of(channel)
        list(stubs.items.UpsertItems(iter([items_pb2.UpsertItemsRequest(items=[items_pb2.Item(item_id="1")])])))
        (first,) = stubs.enrichment.ListJobs(pb.ListJobsRequest()).jobs
        stubs.enrichment.CancelJob(pb.CancelJobRequest(job_id=first.job_id))
        edit(stubs, "", recipe="", text="by anna")
        jobs = stubs.enrichment.ListJobs(pb.ListJobsRequest()).jobs
        assert [job.state for job in jobs] == [pb.JOB_STATE_QUEUED, pb.JOB_STATE_CANCELLED]


def test_prompts(stubs: Stubs, described: str):
    def preview(**asked: str) -> pb.PreviewPromptResponse:
        given = {"catalog": described, "item_id": "1", "route": "text", **asked}
        return stubs.enrichment.PreviewPrompt(pb.PreviewPromptRequest(**given))

    failure = failure_of(preview)
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NO_PROMPT")
    assert failure.metadata == {"describer": "palette"}
    assert failure_of(lambda: preview(item_id="")).fields == ["item_id"]
    failure = failure_of(lambda: preview(describer="openai", route="image"))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ROUTE_NOT_APPLICABLE")
    shown = preview(describer="openai")
    assert [turn.role for turn in shown.turns] == ["system", "user"]
    assert "Film 1" in shown.turns[1].text
    assert (shown.picture_width_px, shown.HasField("picture_tokens")) == (0, False)
    assert (len(shown.description_recipe_id), shown.asked_description_recipe_id) == (16, "")
