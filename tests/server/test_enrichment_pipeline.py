"""One job after another in this process, on a real store."""

import asyncio
import hashlib
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from dmesr_server.control import JobState
from dmesr_server.enrichment import estimating
from dmesr_server.enrichment.describers import DescribeRequest, DescriptionFailure, DescriptionResult, PaletteDescriber
from dmesr_server.enrichment.specs import JobSpec
from dmesr_server.errors import ServiceError
from enriching import World, counts, picture

ALL = {"original", "text", "image", "hybrid"}
ITEMS = 20
WITH_PICTURE = 7  # every third of 20


class CountingPalette(PaletteDescriber):
    """The palette describer, which remembers what it was asked and can be held up."""

    def __init__(self, *, seconds: float = 0.0):
        super().__init__(workers=2)
        self.asked: list[tuple[str, str]] = []
        self.seconds = seconds
        self._more = asyncio.Condition()

    async def reached(self, requests: int) -> None:
        """Returns once it was asked so often."""
        async with self._more:
            await asyncio.wait_for(self._more.wait_for(lambda: len(self.asked) >= requests), 30)

    async def describe(self, requests: Sequence[DescribeRequest]) -> list[DescriptionResult | DescriptionFailure]:
        self.asked += [(request.item_id, request.route) for request in requests]
        async with self._more:
            self._more.notify_all()
        await asyncio.sleep(self.seconds)
        return await super().describe(requests)


async def test_everything_that_applies_is_described_and_encoded(world: World):
    world.fill(ITEMS)
    world.put("nothing")
    world.put("picture-only", data=picture((200, 20, 20)))
    job = await world.run()
    assert job.state is JobState.SUCCEEDED
    assert counts(job, "applicable", "described", "reused", "failed", "encoded") == {
        "original": (ITEMS, 0, 0, 0, ITEMS),
        "text": (ITEMS, ITEMS, 0, 0, ITEMS),
        "image": (WITH_PICTURE + 1, WITH_PICTURE + 1, 0, 0, WITH_PICTURE + 1),
        "hybrid": (WITH_PICTURE, WITH_PICTURE, 0, 0, WITH_PICTURE),
    }
    assert (job.progress["items_done"], job.progress["items_total"]) == (ITEMS + 2, ITEMS + 2)
    assert world.present("item-0000", "item-0001", "nothing", "picture-only") == {
        "item-0000": ALL,
        "item-0001": {"original", "text"},
        "picture-only": {"image"},
    }
    rows = world.rows("item-0000")
    assert rows["item-0000", "text"].text == "Film 0 is a drama and crime item."
    provenance = rows["item-0000", "image"].provenance
    assert provenance["is_mllm"] is False
    assert provenance["describer"] == "palette"
    assert provenance["prompt_revision"] == "palette-1"
    assert provenance["job_id"] == job.job_id
    assert provenance["content_hash"] == rows["item-0000", "image"].input_hash


async def test_vectors_are_those_of_the_texts(world: World):
    world.fill(3)
    await world.run()
    assert world.encoder is not None
    text = world.rows("item-0000")["item-0000", "hybrid"].text
    assert text is not None
    expected = await world.encoder.encode([text, "title: Film 0; genres: Drama, Crime"])
    got = np.concatenate([world.vectors("hybrid", ["item-0000"]), world.vectors("original", ["item-0000"])])
    np.testing.assert_allclose(got, expected, atol=1e-6)


async def test_second_job_does_no_work_and_loads_nothing(world: World):
    world.fill(ITEMS)
    first = await world.run()
    await world.encoder.stop()
    table = world.catalog.embeddings(first.recipe_id)
    versions = (world.catalog.descriptions.version(), table.version())
    describer = CountingPalette()
    second = await world.run(describer=describer)
    assert second.recipe_id == first.recipe_id
    assert describer.asked == []
    assert counts(second, "described", "reused", "encoded") == {
        "original": (0, ITEMS, 0),
        "text": (0, ITEMS, 0),
        "image": (0, WITH_PICTURE, 0),
        "hybrid": (0, WITH_PICTURE, 0),
    }
    assert (world.catalog.descriptions.version(), table.version()) == versions
    assert world.encoder._loaded is None  # no weights were read for nothing


async def test_new_poster_redoes_image_and_hybrid_of_one_item(world: World):
    world.fill(ITEMS)
    await world.run()
    before = {source: world.vectors(source, ["item-0003", "item-0006"]) for source in ALL}
    world.give_picture("item-0003", picture((1, 200, 90)))
    describer = CountingPalette()
    job = await world.run(describer=describer)
    assert sorted(describer.asked) == [("item-0003", "hybrid"), ("item-0003", "image")]
    assert counts(job, "encoded") == {"original": 0, "text": 0, "image": 1, "hybrid": 1}
    for source in ALL:
        after = world.vectors(source, ["item-0003", "item-0006"])
        assert (before[source][0] != after[0]).any() == (source in ("image", "hybrid"))
        assert (before[source][1] == after[1]).all()


async def test_what_no_longer_applies_is_removed(world: World):
    world.put("1", data=picture((9, 90, 200)), title="Heat")
    await world.run()
    assert world.present("1") == {"1": ALL}
    world.put("1", title="Heat")  # without its picture
    job = await world.run()
    assert world.present("1") == {"1": {"original", "text"}}
    assert set(world.rows("1")) == {("1", "text")}
    assert counts(job, "applicable", "encoded") == {
        "original": (1, 0),
        "text": (1, 0),
        "image": (0, 0),
        "hybrid": (0, 0),
    }
    world.put("1", data=picture((9, 90, 200)))  # without attributes
    await world.run()
    assert world.present("1") == {"1": {"image"}}
    assert set(world.rows("1")) == {("1", "image")}


async def test_pictures_that_cannot_be_used_fail_their_routes_alone(world: World):
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    truncated = picture((5, 5, 5), size=(80, 80))[:60]
    world.put("broken", data=truncated, title="Broken")
    world.put("large", data=picture((5, 5, 5), size=(2_000, 1_000)), title="Large")
    world.put("gone", sha256=hashlib.sha256(noise.tobytes()).hexdigest(), title="Gone")
    world.put("fine", data=picture((5, 200, 5)), title="Fine")
    world.config = world.config.model_copy(
        update={"limits": world.config.limits.model_copy(update={"max_picture_pixels": 1_000_000})}
    )
    job = await world.run()
    assert job.state is JobState.SUCCEEDED
    assert counts(job, "applicable", "described", "failed") == {
        "original": (4, 0, 0),
        "text": (4, 4, 0),
        "image": (4, 1, 3),
        "hybrid": (4, 1, 3),
    }
    rows = world.rows("broken", "large", "gone", "fine")
    reasons = {item_id: rows[item_id, "image"].failure_reason for item_id in ("broken", "large", "gone", "fine")}
    assert reasons == {
        "broken": "PICTURE_UNREADABLE",
        "large": "PICTURE_TOO_MANY_PIXELS",
        "gone": "PICTURE_NOT_FOUND",
        "fine": None,
    }
    assert "2000×1000" in rows["large", "hybrid"].failure_message
    assert world.present("broken") == {"broken": {"original", "text"}}
    # A failure is not tried again by itself …
    again = CountingPalette()
    second = await world.run(describer=again)
    assert again.asked == []
    assert counts(second, "failed") == {"original": 0, "text": 0, "image": 3, "hybrid": 3}
    # … but when it is asked for, or when the picture has changed.
    world.put("gone", data=picture((0, 0, 250)), title="Gone")
    third = await world.run(JobSpec(retry_failed=True))
    assert counts(third, "described", "failed")["image"] == (1, 2)


async def test_description_that_fails_later_takes_the_old_one_away(world: World):
    world.put("1", data=picture((9, 90, 200)), title="Heat")
    await world.run()
    world.put("1", data=b"no picture at all", title="Heat")
    await world.run()
    assert world.present("1") == {"1": {"original", "text"}}
    assert world.rows("1")["1", "image"].text is None


class Unsteady(CountingPalette):
    """Falls over one item, gives no text for another."""

    async def describe(self, requests: Sequence[DescribeRequest]) -> list[DescriptionResult | DescriptionFailure]:
        if any(request.item_id == "item-0001" for request in requests):
            raise ZeroDivisionError("the describer has a fault")
        made = await super().describe(requests)
        return [
            DescriptionResult(text=" \n") if request.item_id == "item-0002" else answer
            for request, answer in zip(requests, made, strict=True)
        ]


async def test_describer_that_falls_over_one_item_goes_on_with_the_others(world: World):
    world.fill(5)
    job = await world.run(describer=Unsteady())
    assert job.state is JobState.SUCCEEDED
    assert counts(job, "described", "failed")["text"] == (3, 2)
    rows = world.rows("item-0001", "item-0002")
    assert rows["item-0001", "text"].failure_reason == "DESCRIPTION_UNUSABLE"
    assert "ZeroDivisionError: the describer has a fault" in rows["item-0001", "text"].failure_message
    assert "empty text" in rows["item-0002", "text"].failure_message


class Gone(CountingPalette):
    """Works for a while, then cannot go on."""

    async def describe(self, requests: Sequence[DescribeRequest]) -> list[DescriptionResult | DescriptionFailure]:
        if self.asked:
            await asyncio.sleep(0.2)
            raise ServiceError("DESCRIBER_UNAVAILABLE", "the engine has died; restart it", describer="x")
        return await super().describe(requests)


async def test_describer_that_is_gone_fails_the_job_and_loses_no_description(world: World):
    world.fill(100)
    job = await world.run(describer=Gone())
    assert job.state is JobState.FAILED
    assert job.problem["reason"] == "DESCRIBER_UNAVAILABLE"
    assert job.problem["metadata"] == {"describer": "x"}
    made = counts(job, "described")["text"]
    assert 0 < made < 100
    recipe = world.control.recipes.resolve("default", "default").description_recipes["text"]
    assert world.catalog.descriptions.count(recipe) == (made, 0)
    done = await world.run()
    assert done.state is JobState.SUCCEEDED
    assert counts(done, "described", "reused")["text"] == (100 - made, made)


async def test_limit_counts_items_that_need_work(world: World):
    world.fill(ITEMS)
    first = await world.run(JobSpec(limit=5))
    assert counts(first, "described")["text"] == 5
    assert (first.progress["items_done"], first.progress["items_total"]) == (5, 5)
    second = await world.run(JobSpec(limit=5))
    assert counts(second, "described", "reused")["text"] == (5, 5)
    assert set(world.present(*(f"item-{number:04}" for number in range(ITEMS)))) == {
        f"item-{number:04}" for number in range(10)
    }


async def test_only_some_routes_and_some_items(world: World):
    world.fill(ITEMS)
    job = await world.run(JobSpec(routes=("image",), item_ids=("item-0003", "item-0001", "item-0003")))
    assert counts(job, "described", "encoded") == {"original": (0, 2), "image": (1, 1)}
    assert job.progress["items_total"] == 2
    assert world.present("item-0001", "item-0003") == {"item-0001": {"original"}, "item-0003": {"original", "image"}}
    rest = await world.run()  # the same recipe: only what is missing is done
    assert rest.recipe_id == job.recipe_id
    assert counts(rest, "described", "reused")["image"] == (WITH_PICTURE - 1, 1)


async def test_another_encoder_encodes_and_asks_no_describer(world: World, tmp_path):
    from enriching import write_tiny_encoder

    world.fill(6)
    first = await world.run()
    other = write_tiny_encoder(tmp_path / "other")
    (other / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    describer = CountingPalette()
    second = await world.run(JobSpec(encoder=str(other), recipe="short"), describer=describer)
    assert second.state is JobState.SUCCEEDED
    assert second.recipe_id != first.recipe_id
    assert describer.asked == []
    assert counts(second, "encoded")["text"] == 6
    assert world.control.recipes.resolve("default", "default").recipe_id == first.recipe_id


async def test_unchanged_text_is_not_encoded_again(world: World):
    """What counts for a vector is the text, not whether somebody wrote it again."""
    world.put("1", title="Heat", genres="Crime")
    await world.run()
    world.put("1", title="Heat", genres=" Crime ")
    job = await world.run()
    assert counts(job, "described", "encoded") == {
        "original": (0, 1),
        "text": (1, 0),
        "image": (0, 0),
        "hybrid": (0, 0),
    }


async def test_items_deleted_while_the_job_runs_leave_nothing_behind(world: World):
    world.fill(60)
    job = world.start()
    describer = CountingPalette(seconds=0.3)
    running = asyncio.create_task(world.claimed(describer=describer).run())
    await describer.reached(1)
    gone = [f"item-{number:04}" for number in range(0, 60, 2)]
    await asyncio.to_thread(world.catalog.delete_items, gone)
    await running
    assert world.control.jobs.get(job.job_id).state is JobState.SUCCEEDED
    assert world.rows(*gone) == {}
    assert world.present(*gone) == {}
    assert len(world.present(*(f"item-{number:04}" for number in range(60)))) == 30


async def test_cancelling_stops_soon_and_keeps_what_was_made(world: World):
    world.fill(200)
    job = world.start()
    describer = CountingPalette(seconds=0.1)
    running = asyncio.create_task(world.claimed(describer=describer).run())
    await describer.reached(70)
    world.control.jobs.request_cancel(job.job_id)
    await asyncio.wait_for(running, 5)
    ended = world.control.jobs.get(job.job_id)
    assert ended.state is JobState.CANCELLED
    asked = len(describer.asked)
    assert asked < 260  # of 267
    assert counts(ended, "described")["text"] > 0
    rows = world.catalog.descriptions.count(_recipe(world, "text"))
    assert rows == (counts(ended, "described")["text"], 0)


async def test_stopping_puts_the_job_back_and_it_ends_as_if_nothing_had_been(world: World):
    world.fill(100)
    job = world.start()
    stopping = asyncio.Event()
    describer = CountingPalette(seconds=0.1)
    running = asyncio.create_task(world.claimed(stopping=stopping, describer=describer).run())
    await describer.reached(40)
    stopping.set()
    await asyncio.wait_for(running, 5)
    assert world.control.jobs.get(job.job_id).state is JobState.QUEUED
    await world.claimed(owner="another").run()
    ended = world.control.jobs.get(job.job_id)
    assert ended.state is JobState.SUCCEEDED
    assert ended.attempts == 2
    # What it made before the interruption counts as its own.
    assert counts(ended, "applicable", "described", "reused") == {
        "original": (100, 0, counts(ended, "reused")["original"]),
        "text": (100, 100, 0),
        "image": (34, 34, 0),
        "hybrid": (34, 34, 0),
    }
    assert world.catalog.descriptions.count(_recipe(world, "text")) == (100, 0)


async def test_late_writer_is_refused(world: World):
    """An enricher that slept through its lease writes nothing once another one has the job."""
    world.config = world.config.model_copy(
        update={"enrichment": world.config.enrichment.model_copy(update={"lease_seconds": 0.5})}
    )
    world.fill(40)
    job = world.start()
    describer = CountingPalette(seconds=1.0)
    sleeper = world.claimed(describer=describer)
    awake = threading.Event()
    world.heart.submit(awake.wait)  # its heart stands still: the only thread is busy
    try:
        running = asyncio.create_task(sleeper.run())
        await describer.reached(1)
        await asyncio.sleep(0.6)
        taken = world.control.jobs.claim("another", 30)
        assert taken is not None
        assert taken.job.job_id == job.job_id
    finally:
        awake.set()
    await asyncio.wait_for(running, 5)
    assert world.rows(*(f"item-{number:04}" for number in range(40))) == {}
    assert world.control.jobs.get(job.job_id).state is JobState.RUNNING  # the other one's


async def test_dropped_catalog_ends_the_job_and_does_not_come_back(world: World):
    world.control.catalogs.create("films", "film")
    world.name = "films"
    world.fill(60)
    world.start()
    describer = CountingPalette(seconds=0.2)
    running = asyncio.create_task(world.claimed(describer=describer).run())
    await describer.reached(1)
    world.control.catalogs.drop("films")
    world.store.drop_catalog("films")
    await asyncio.wait_for(running, 5)
    assert world.store.catalog("films").stats() == []


async def test_estimate_before_and_after(world: World):
    world.fill(ITEMS)

    def estimate(spec: JobSpec) -> estimating.Estimate:
        return estimating.estimate(
            control=world.control, config=world.config, catalog=world.catalog, name="default", spec=spec
        )

    before = estimate(JobSpec())
    assert {work.route: (work.applicable, work.reused, work.to_describe, work.to_encode) for work in before.routes} == {
        "original": (ITEMS, 0, 0, ITEMS),
        "text": (ITEMS, 0, ITEMS, ITEMS),
        "image": (WITH_PICTURE, 0, WITH_PICTURE, WITH_PICTURE),
        "hybrid": (WITH_PICTURE, 0, WITH_PICTURE, WITH_PICTURE),
    }
    assert (before.items, before.seconds, before.tokens) == (ITEMS, None, None)
    assert before.store_bytes > (2 * ITEMS + 2 * WITH_PICTURE) * 16 * 4
    assert "No earlier job" in before.basis
    with pytest.raises(ServiceError, match="no recipe default"):
        world.control.recipes.resolve("default", "default")  # an estimate changes nothing

    limited = await world.run(JobSpec(limit=10))
    rates = limited.progress["rates"]
    assert rates["routes"]["text"]["described"] == 10
    after = estimate(JobSpec())
    assert after.seconds > 0
    assert "1 earlier job" in after.basis
    assert {work.route: work.to_describe for work in after.routes}["text"] == ITEMS - 10
    assert {work.route: work.to_describe for work in estimate(JobSpec(limit=3)).routes}["text"] == 3

    await world.run()
    done = estimate(JobSpec())
    assert done.seconds == 0
    assert done.store_bytes == 0


def _recipe(world: World, route: str) -> str:
    return world.control.recipes.resolve("default", "default").description_recipes[route]
