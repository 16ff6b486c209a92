"""Enrichment through the SDK, on a real server with its enricher."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable

import dmesr
import dmesr.aio
import numpy as np
import pytest
from dmesr import ImportedDescription, Item, JobState
from running_server import RunningServer

Png = Callable[..., bytes]
WAIT = 120.0  # seconds; the first job loads the encoder


@pytest.fixture
def catalogue(films: dmesr.Client, png: Png) -> dmesr.Client:
    """Six films: two with picture and text, one with a picture only, three with text only."""
    films.items.upsert(
        [
            Item("1", {"title": "Alien", "genres": ["horror", "sci-fi"]}, picture=png("red")),
            Item("2", {"title": "Brazil", "genres": "comedy"}, picture=png("blue")),
            Item("3", picture=png("green")),
            *(Item(str(n), {"title": f"Film {n}"}) for n in (4, 5, 6)),
        ]
    )
    return films


def test_a_job_describes_and_encodes(catalogue: dmesr.Client):
    before = catalogue.enrichment.estimate()
    assert before.items == 6
    assert {one.route: (one.applicable, one.to_describe) for one in before.routes if one.route != "original"} == {
        "text": (5, 5),
        "image": (3, 3),
        "hybrid": (2, 2),
    }
    assert before.basis
    job = catalogue.enrichment.start().wait(timeout=WAIT)
    assert (job.state, job.items_done, job.items_total) == (JobState.SUCCEEDED, 6, 6)
    assert {one.route: one.described for one in job.routes} == {"original": 0, "text": 5, "image": 3, "hybrid": 2}
    assert job.describer == "palette"
    assert None not in (job.create_time, job.start_time, job.end_time)

    found = catalogue.embeddings.read(item_ids=["3", "1", "4"])
    assert set(found.sources) == {"original", "text", "image", "hybrid"}
    assert {name: found.present(name).tolist() for name in found.sources} == {
        "original": [False, True, True],
        "text": [False, True, True],
        "image": [True, True, False],
        "hybrid": [False, True, False],
    }
    assert np.isfinite(found.matrix("text")).all()
    assert found.recipe_id == job.recipe_id

    again = catalogue.enrichment.start().wait(timeout=WAIT)
    assert sum(one.described + one.encoded for one in again.routes) == 0
    assert catalogue.enrichment.estimate().routes[1].to_describe == 0
    assert [one.job_id for one in catalogue.enrichment.list()] == [again.job_id, job.job_id]
    assert catalogue.enrichment.get(job.job_id).state is JobState.SUCCEEDED
    with pytest.raises(dmesr.WrongJobState):
        job.cancel()
    retried = catalogue.enrichment.retry(job.job_id).wait(timeout=WAIT)
    assert retried.state is JobState.SUCCEEDED


def test_descriptions_with_their_provenance(catalogue: dmesr.Client):
    catalogue.enrichment.start(routes=["text", "image"], item_ids=["1", "3"]).wait(timeout=WAIT)
    found = catalogue.enrichment.descriptions(["3", "1", "nobody"])
    assert [(one.item_id, one.route) for one in found.descriptions] == [("3", "image"), ("1", "text"), ("1", "image")]
    assert found.missing == ("nobody",)
    assert "Alien" in found.original_texts["1"]
    alien = found.descriptions[1]
    assert "Alien" in alien.text
    assert (alien.problem, alien.stale) == (None, False)
    assert alien.provenance is not None
    assert (alien.provenance.describer, alien.provenance.is_mllm) == ("palette", False)
    catalogue.items.upsert([Item("1", {"title": "Aliens"}, picture=dmesr.KEEP_PICTURE)])
    assert catalogue.enrichment.descriptions(["1"]).descriptions[0].stale


def test_the_same_request_is_the_same_job(catalogue: dmesr.Client):
    request_id = str(uuid.uuid4())
    first = catalogue.enrichment.start(request_id=request_id, limit=1)
    assert catalogue.enrichment.start(request_id=request_id, limit=1).job_id == first.job_id
    assert first.wait(timeout=WAIT).items_total == 1
    assert first.refresh() is first


def test_descriptions_made_elsewhere(catalogue: dmesr.Client):
    summary = catalogue.enrichment.import_descriptions(
        (
            ImportedDescription(item_id, route, f"{route} of {item_id}")
            for route in ("text", "image")
            for item_id in ("1", "2", "nobody")
        ),
        model="a-model@1",
        recipe="imported",
    )
    assert summary.inserted == 4
    assert [(row.item_id, row.reason) for row in summary.rejected] == [("nobody", "ITEM_NOT_FOUND")] * 2
    bad = catalogue.enrichment.import_descriptions(
        [
            ImportedDescription("1", "text", "x" * 4_000_000),
            ImportedDescription("1", "text", "\ud800"),
            ImportedDescription("1", "", "x"),
        ],
        model="a-model@1",
        recipe="imported",
    )
    assert {row.reason for row in bad.rejected} >= {"REQUEST_TOO_LARGE", "INVALID_FIELD"}
    assert len(bad.rejected) == 3
    job = catalogue.enrichment.start(recipe="imported", describer="import").wait(timeout=WAIT)
    assert job.state is JobState.SUCCEEDED
    found = catalogue.embeddings.read(recipe="imported", item_ids=["1", "4"])
    assert found.present("text").tolist() == [True, False]
    texts = catalogue.enrichment.descriptions(["1"], recipe="imported")
    assert [one.text for one in texts.descriptions] == ["text of 1", "image of 1"]
    assert {one.provenance.is_mllm for one in texts.descriptions if one.provenance} == {True}


def test_a_person_corrects_a_description(catalogue: dmesr.Client):
    enrichment = catalogue.enrichment
    enrichment.start(routes=["text"]).wait(timeout=WAIT)
    before = catalogue.embeddings.read(item_ids=["1"]).matrix("text").copy()
    made = enrichment.edit_description("1", route="text", text="Seven people and a cat.", author="anna")
    assert (made.text, made.is_corrected, made.stale) == ("Seven people and a cat.", True, False)
    assert made.provenance is not None
    assert (made.provenance.author, made.provenance.describer, made.provenance.is_mllm) == ("anna", "person", False)
    assert made.provenance.create_time is not None
    assert made.replaced is not None
    assert "Alien" in made.replaced.text
    assert not made.replaced.is_corrected

    catalogue.items.upsert([Item("1", {"title": "Aliens"}, picture=dmesr.KEEP_PICTURE)])
    job = enrichment.start(routes=["text"]).wait(timeout=WAIT)
    assert {one.route: (one.described, one.encoded) for one in job.routes} == {"original": (0, 1), "text": (0, 1)}
    assert (catalogue.embeddings.read(item_ids=["1"]).matrix("text") != before).any()
    (kept,) = enrichment.descriptions(["1"]).descriptions
    assert (kept.text, kept.stale) == (made.text, True)
    stats = {one.route: one for one in enrichment.stats().routes}
    assert (stats["text"].described, stats["text"].corrected, stats["text"].stale) == (5, 1, 1)
    assert (stats["text"].coverage, stats["image"].coverage, stats["image"].failed) == (1.0, 0.0, 0)
    assert stats["text"].cache_hit_share is stats["text"].tokens_per_second is stats["text"].refinement is None

    back = enrichment.withdraw_edit("1", route="text")
    assert back is not None
    assert back.text == made.replaced.text
    with pytest.raises(dmesr.CorrectionNotFound):
        enrichment.withdraw_edit("1", route="text")
    with pytest.raises(dmesr.InvalidInput):
        enrichment.edit_description("1", route="text", text="", author="anna")
    with pytest.raises(dmesr.ItemNotFound):
        enrichment.edit_description("nobody", route="text", text="A film.", author="anna")


def test_all_descriptions_are_listed_and_brought_in_again(catalogue: dmesr.Client):
    enrichment = catalogue.enrichment
    enrichment.start(routes=["text", "image"]).wait(timeout=WAIT)
    enrichment.edit_description("4", route="text", text="By anna.", author="anna")
    listed = list(enrichment.list_descriptions(page_size=2))
    assert [(one.item_id, one.route) for one in listed] == [
        *(("1", "text"), ("1", "image"), ("2", "text"), ("2", "image"), ("3", "image")),
        *(("4", "text"), ("5", "text"), ("6", "text")),
    ]
    assert list(enrichment.list_descriptions(include_failures=True)) == listed
    summary = enrichment.import_descriptions(
        (
            ImportedDescription(one.item_id, one.route, one.text, one.provenance.author if one.provenance else "")
            for one in enrichment.list_descriptions()
        ),
        model="taken-along",
        recipe="again",
    )
    assert (summary.inserted, summary.rejected) == (8, ())
    again = list(enrichment.list_descriptions(recipe="again"))
    assert [(one.item_id, one.route, one.text) for one in again] == [
        (one.item_id, one.route, one.text) for one in listed
    ]
    assert [one.item_id for one in again if one.provenance and one.provenance.author == "anna"] == ["4"]
    with pytest.raises(dmesr.RecipeNotFound):
        list(enrichment.list_descriptions(recipe="nothing"))


def test_prompts(catalogue: dmesr.Client):
    shown = catalogue.enrichment.preview("1", route="hybrid", describer="openai")
    assert [(turn.role, turn.has_picture, turn.round) for turn in shown.turns[:2]] == [
        ("system", False, 0),
        ("user", True, 0),
    ]
    assert "Alien" in shown.turns[1].text
    assert (shown.picture_width_px, shown.picture_height_px, shown.picture_tokens) == (8, 8, None)
    assert shown.asked_description_recipe_id is None
    with pytest.raises(dmesr.NoPrompt, match="palette"):
        catalogue.enrichment.preview("1", route="hybrid")
    with pytest.raises(dmesr.RouteNotApplicable):
        catalogue.enrichment.preview("4", route="hybrid", describer="openai")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"routes": ["smell"]}, dmesr.UnknownRoute),
        ({"describer": "nobody"}, dmesr.DescriberUnavailable),
        ({"encoder": "nothing"}, dmesr.EncoderUnavailable),
        ({"routes": []}, dmesr.InvalidInput),
        ({"item_ids": []}, dmesr.InvalidInput),
        ({"limit": 0}, dmesr.InvalidInput),
    ],
)
def test_settings_that_cannot_be_are_refused(
    catalogue: dmesr.Client, arguments: dict[str, object], error: type[dmesr.DmesrError]
):
    with pytest.raises(error):
        catalogue.enrichment.start(**arguments)  # type: ignore[arg-type]
    assert list(catalogue.enrichment.list()) == []


def test_what_does_not_exist_is_named(films: dmesr.Client):
    for call in (films.enrichment.get, films.enrichment.retry):
        with pytest.raises(dmesr.JobNotFound):
            call("0" * 32)
    with pytest.raises(dmesr.RecipeNotFound):
        films.enrichment.descriptions(["1"], recipe="none")


def test_waiting_across_a_death_of_the_server(start_server: Callable[..., RunningServer]):
    server = start_server(enricher=False)  # so the job is still queued when the server is back
    with dmesr.connect(server.address) as client:
        client.items.upsert([Item("1", {"title": "Alien"})])
        job = client.enrichment.start()
        done: list[JobState] = []
        thread = threading.Thread(target=lambda: done.append(job.wait(timeout=WAIT).state))
        thread.start()
        server.kill()
        server.start()
        client.enrichment.get(job.job_id).cancel()
        thread.join(WAIT)
        assert done == [JobState.CANCELLED]


async def test_the_async_face(sdk_server: RunningServer, catalogue: dmesr.Client):
    async with dmesr.aio.connect(sdk_server.address, catalog=catalogue.catalog_name) as client:
        job = await client.enrichment.start(item_ids=["1"])
        seen: list[JobState] = []
        await job.wait(timeout=WAIT, progress=lambda state: seen.append(state.state))
        assert seen[-1] is JobState.SUCCEEDED
        assert [one.job_id async for one in client.enrichment.list()] == [job.job_id]
        assert (await client.enrichment.get(job.job_id)).recipe_id == job.recipe_id
        assert len((await client.enrichment.descriptions(["1"])).descriptions) == 3
        assert (await client.enrichment.estimate()).items == 6
        assert len([one async for one in client.enrichment.list_descriptions(page_size=1)]) == 3
        made = await client.enrichment.edit_description("1", route="text", text="By anna.", author="anna")
        assert made.replaced == await client.enrichment.withdraw_edit("1", route="text")
        assert (await client.enrichment.stats()).items == 6
        assert (await client.enrichment.preview("1", route="text", describer="openai")).describer == "openai"
