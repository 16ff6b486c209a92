"""What a person wrote stands until it is withdrawn, whatever jobs do and whatever becomes of the item."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from dmesr_server.control import JobState, RecipeRow
from dmesr_server.enrichment import corrections, estimating, routes
from dmesr_server.enrichment.corrections import Standing
from dmesr_server.enrichment.specs import JobSpec
from dmesr_server.errors import ServiceError
from enriching import World, counts, picture
from test_enrichment_pipeline import CountingPalette


def _recipe(world: World) -> RecipeRow:
    return world.control.recipes.resolve("default", "default")


def edit(world: World, item_id: str, route: str, text: str, *, author: str = "anna") -> Standing:
    return corrections.edit(
        store=world.catalog, recipe=_recipe(world), item_id=item_id, route=route, text=text, author=author
    )


def withdraw(world: World, item_id: str, route: str) -> Standing | None:
    return corrections.withdraw(store=world.catalog, recipe=_recipe(world), item_id=item_id, route=route)


def standing(world: World, item_id: str, route: str) -> Standing:
    ids = _recipe(world).description_recipes.values()
    return corrections.read(world.catalog.descriptions, [item_id], ids)[item_id][route]


async def encoded(world: World, item_id: str, route: str) -> str:
    """The text whose vector is stored: each text has one of its own."""
    table = world.catalog.embeddings(_recipe(world).recipe_id)
    return (await asyncio.to_thread(table.hashes, [item_id]))[item_id][route]


async def test_a_correction_is_encoded_by_the_next_job_and_never_described_again(world: World):
    world.fill(4)
    await world.run()
    machine = world.rows("item-0000")["item-0000", "text"].text
    assert machine is not None
    made = edit(world, "item-0000", "text", "  Two men and a diner.\n")
    assert made.row.text == "Two men and a diner."
    assert made.replaced is not None
    assert made.replaced.text == machine
    assert {key: made.row.provenance[key] for key in ("describer", "is_mllm", "author")} == {
        "describer": "person",
        "is_mllm": False,
        "author": "anna",
    }

    for _ in range(2):  # whatever a job does again
        describer = CountingPalette()
        job = await world.run(JobSpec(retry_failed=True), describer=describer)
        assert describer.asked == []
        assert counts(job, "applicable", "reused")["text"] == (4, 4)
        assert await encoded(world, "item-0000", "text") == routes.text_hash("Two men and a diner.")
    expected = await world.encoder.encode(["Two men and a diner."])
    np.testing.assert_allclose(world.vectors("text", ["item-0000"]), expected, atol=1e-6)
    assert await encoded(world, "item-0001", "text") == routes.text_hash("Film 1 is a drama and crime item.")


async def test_a_withdrawal_brings_back_what_the_describer_had_made(world: World):
    world.fill(2)
    await world.run()
    machine = world.rows("item-0001")["item-0001", "text"]
    edit(world, "item-0001", "text", "Another film.")
    await world.run()
    back = withdraw(world, "item-0001", "text")
    assert back == Standing(machine)
    describer = CountingPalette()
    await world.run(describer=describer)
    assert describer.asked == []  # it was kept beneath
    assert await encoded(world, "item-0001", "text") == routes.text_hash(machine.text)
    with pytest.raises(ServiceError, match="nobody has corrected") as refused:
        withdraw(world, "item-0001", "text")
    assert refused.value.reason == "CORRECTION_NOT_FOUND"


async def test_a_correction_stays_when_the_item_changes_and_is_told_to_be_stale(world: World):
    world.put("1", title="Heat", data=picture((9, 90, 200)))
    await world.run()
    edit(world, "1", "text", "Two men and a diner.")
    world.put("1", title="Heat (1995)", data=picture((9, 90, 200)))
    describer = CountingPalette()
    await world.run(describer=describer)
    assert describer.asked == [("1", "hybrid")]
    row = standing(world, "1", "text").row
    item = world.catalog.items.get(["1"])["1"]
    assert (row.text, routes.is_stale(item, "text", row.input_hash)) == ("Two men and a diner.", True)

    # The same words for the item as it is now: looked at again, so no longer stale.
    again = edit(world, "1", "text", "Two men and a diner.", author="ben")
    assert not routes.is_stale(item, "text", again.row.input_hash)
    assert again.row.provenance["author"] == "ben"
    assert again.replaced is not None
    assert again.replaced.text == "Heat is an item."
    assert edit(world, "1", "text", "Two men and a diner.", author="carla") == again  # nothing new

    withdraw(world, "1", "text")
    describer = CountingPalette()
    await world.run(describer=describer)
    assert describer.asked == [("1", "text")]  # what was kept beneath was made from the old title


async def test_a_correction_outlives_the_picture(world: World):
    world.put("1", title="Heat", data=picture((9, 90, 200)))
    await world.run()
    edit(world, "1", "image", "A blue night over the city.")
    world.put("1", title="Heat")  # without its picture
    job = await world.run()
    assert world.present("1") == {"1": {"original", "text", "image"}}
    assert counts(job, "applicable", "reused", "encoded")["image"] == (1, 1, 1)
    assert withdraw(world, "1", "image") is not None
    await world.run()
    assert world.present("1") == {"1": {"original", "text"}}
    assert set(world.rows("1")) == {("1", "text")}


async def test_a_route_that_was_never_described_can_be_written(world: World):
    world.put("1", title="Heat")
    world.put("2", title="Ran")
    await world.run(JobSpec(item_ids=("2",)))
    made = edit(world, "1", "text", "Two men and a diner.")
    assert made.replaced is None
    estimate = estimating.estimate(
        control=world.control, config=world.config, catalog=world.catalog, name="default", spec=JobSpec()
    )
    work = {each.route: (each.to_describe, each.to_encode) for each in estimate.routes}
    assert work["text"] == (0, 1)
    describer = CountingPalette()
    await world.run(describer=describer)
    assert describer.asked == []
    assert withdraw(world, "1", "text") is None
    await world.run(describer=describer)
    assert describer.asked == [("1", "text")]


async def test_a_correction_that_comes_during_a_job_is_not_overwritten(world: World):
    world.fill(3)
    await world.run(JobSpec(routes=("text",), limit=1))
    describer = CountingPalette(seconds=0.3)
    job = world.start()
    running = asyncio.create_task(world.claimed(describer=describer).run())
    await describer.reached(1)
    edit(world, "item-0002", "text", "Two men and a diner.")
    await running
    assert world.control.jobs.get(job.job_id).state is JobState.SUCCEEDED
    assert standing(world, "item-0002", "text").row.text == "Two men and a diner."
    await world.run()
    assert await encoded(world, "item-0002", "text") == routes.text_hash("Two men and a diner.")


async def test_imported_texts_can_be_corrected_too(world: World):
    from dmesr_server.enrichment import imports

    world.put("1", title="Heat")
    imports.import_descriptions(
        control=world.control,
        store=world.catalog,
        config=world.config,
        catalog="default",
        model="gpt-x",
        is_mllm=True,
        recipe="default",
        rows=[imports.ImportRow("1", "text", "By the model.")],
    )
    edit(world, "1", "text", "By anna.")
    await world.run(JobSpec(describer="import"))
    assert await encoded(world, "1", "text") == routes.text_hash("By anna.")


async def test_it_belongs_to_the_description_recipe(world: World):
    """Another encoder keeps it, other words of the describer do not."""
    world.put("1", title="Heat")
    await world.run()
    edit(world, "1", "text", "By anna.")
    recipe = _recipe(world)
    other = {"text": recipe.description_recipes["text"]}
    world.control.recipes.save_embedding("default", "another-encoder", {}, other)
    read = corrections.read(world.catalog.descriptions, ["1"], other.values())
    assert read["1"]["text"].row.text == "By anna."
    assert corrections.read(world.catalog.descriptions, ["1"], ["other-words"]) == {}
    world.catalog.delete_items(["1"])
    assert corrections.read(world.catalog.descriptions, ["1"], other.values()) == {}


async def test_bad_corrections(world: World):
    world.put("1", title="Heat")
    await world.run()
    before = world.catalog.descriptions.version()

    def refused(**changed: str) -> str:
        given = {"item_id": "1", "route": "text", "text": "By anna.", "author": "anna", **changed}
        with pytest.raises(ServiceError) as error:
            corrections.edit(store=world.catalog, recipe=_recipe(world), **given)
        return error.value.violations[0].field if error.value.violations else error.value.reason

    assert refused(item_id="nobody") == "ITEM_NOT_FOUND"
    assert refused(route="smell") == refused(route="original") == refused(route="reflect") == "UNKNOWN_ROUTE"
    assert refused(text=" \n") == refused(text="é" * 40_000) == "text"
    assert refused(author="") == "author"
    assert world.catalog.descriptions.version() == before
