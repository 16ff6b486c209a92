"""Starting and retrying jobs, automatic ones, and descriptions made elsewhere."""

import asyncio
import threading

import pytest
from dmesr_server.control import JobRow, JobState
from dmesr_server.enrichment import imports, jobs, routes
from dmesr_server.enrichment.imports import ImportOutcome, ImportRow
from dmesr_server.enrichment.specs import JobSpec
from dmesr_server.errors import ServiceError
from enriching import World, counts, picture


def retry(world: World, job: JobRow, request_id: str | None = None) -> JobRow:
    return jobs.retry_job(
        control=world.control, store=world.store, config=world.config, job_id=job.job_id, request_id=request_id
    )


def ensure_auto(world: World) -> JobRow:
    return jobs.ensure_auto_job(control=world.control, store=world.store, config=world.config, catalog=world.name)


def bring_in(world: World, *rows: ImportRow, model: str = "gpt-x", recipe: str = "default") -> list[ImportOutcome]:
    return imports.import_descriptions(
        control=world.control,
        store=world.catalog,
        config=world.config,
        catalog=world.name,
        model=model,
        is_mllm=True,
        recipe=recipe,
        rows=rows,
    )


def outcomes(found: list[ImportOutcome]) -> list[str]:
    return [one.outcome if one.problem is None else one.problem.reason for one in found]


def test_started_job_is_queued_with_its_recipe(world: World):
    job = world.start(JobSpec(recipe="films", limit=3))
    assert job.state is JobState.QUEUED
    assert job.describer == "palette"
    assert job.encoder.startswith("sentence-transformers:")
    recipe = world.control.recipes.resolve("default", "films")
    assert recipe.recipe_id == job.recipe_id
    assert set(recipe.description_recipes) == set(routes.ROUTES)
    assert recipe.spec["encoder"]["dim"] == 16
    spec = world.control.recipes.description(recipe.description_recipes["image"]).spec
    assert (spec["describer"], spec["is_mllm"], spec["domain"], spec["route"]) == ("palette", False, "item", "image")
    assert JobSpec.from_json(job.spec) == JobSpec(recipe="films", limit=3)


def test_fewer_routes_make_the_same_recipe(world: World):
    assert world.start(JobSpec(routes=("text",))).recipe_id == world.start().recipe_id


def test_same_request_is_the_same_job_and_moves_no_name(world: World, tmp_path):
    first = world.start(request_id="r-1")
    assert world.start(request_id="r-1") == first
    claimed = world.control.jobs.claim("x", 10)
    assert claimed is not None
    bring_in_target = world.start(JobSpec(recipe="other"))
    world.control.recipes.bind("default", "default", bring_in_target.recipe_id)
    assert world.start(request_id="r-1").job_id == first.job_id


@pytest.mark.parametrize(
    ("spec", "reason", "said"),
    [
        (JobSpec(routes=("smell",)), "UNKNOWN_ROUTE", "smell"),
        (JobSpec(describer="crystal ball"), "DESCRIBER_UNAVAILABLE", "palette"),
        (JobSpec(encoder="/no/folder"), "ENCODER_UNAVAILABLE", "/no/folder"),
        (JobSpec(limit=-1), "INVALID_FIELD", "-1"),
        (JobSpec(recipe=""), "INVALID_FIELD", "spec.recipe"),
        (JobSpec(item_ids=("a", "nobody")), "ITEM_NOT_FOUND", "'nobody'"),
        (JobSpec(describer="import"), "RECIPE_NOT_FOUND", "default"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_queued(world: World, spec: JobSpec, reason: str, said: str):
    world.put("a", title="A")
    with pytest.raises(ServiceError) as caught:
        world.start(spec)
    assert caught.value.reason == reason
    assert said in caught.value.message
    assert world.control.jobs.list() == []
    assert world.control.recipes.list("default") == []


def test_unknown_catalog(world: World):
    world.name = "nowhere"
    with pytest.raises(ServiceError) as caught:
        world.start()
    assert caught.value.reason == "CATALOG_NOT_FOUND"


async def test_retry_tries_what_failed_with_the_same_settings(world: World):
    world.put("1", data=b"broken", title="One")
    world.put("2", title="Two")
    job = await world.run(JobSpec(item_ids=("1", "2"), recipe="films"))
    assert counts(job, "failed")["image"] == 1
    world.catalog.delete_items(["2"])
    again = retry(world, job, "request")
    assert retry(world, job, "request") == again
    assert JobSpec.from_json(again.spec) == JobSpec(
        recipe="films", item_ids=("1",), describer="palette", encoder=job.encoder, retry_failed=True
    )
    with pytest.raises(ServiceError) as caught:
        retry(world, again)
    assert (caught.value.reason, caught.value.metadata["state"]) == ("JOB_STATE", "QUEUED")
    await world.claimed().run()
    ended = world.control.jobs.get(again.job_id)
    assert counts(ended, "failed", "reused")["image"] == (1, 0)
    assert world.rows("1", recipe="films")["1", "image"].provenance["job_id"] == again.job_id


def test_one_automatic_job_waits_whoever_asks(world: World):
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(ensure_auto(world).job_id)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert world.control.jobs.claim("x", 30) is not None
    # The job that runs may have passed the new item already: another one has to wait.
    second = ensure_auto(world)
    assert second.job_id not in found
    assert ensure_auto(world) == second
    assert second.spec["auto"] is True


@pytest.mark.parametrize("taken", [False, True])
def test_an_automatic_job_that_another_process_makes_at_the_same_moment(
    world: World, monkeypatch: pytest.MonkeyPatch, taken: bool
):
    look, made = world.control.jobs.active, []

    def look_and_be_late(catalog: str) -> list[JobRow]:
        found = look(catalog)
        monkeypatch.setattr(world.control.jobs, "active", look)
        made.append(ensure_auto(world))
        if taken:
            assert world.control.jobs.claim("x", 30) is not None
        return found

    monkeypatch.setattr(world.control.jobs, "active", look_and_be_late)
    job = ensure_auto(world)
    # The one that runs already may have passed the change.
    assert (job.job_id == made[0].job_id) is not taken
    assert job.state is JobState.QUEUED


async def test_imported_descriptions_are_encoded_by_a_job(world: World):
    world.put("1", data=picture((200, 30, 30)), title="Heat")
    world.put("2", title="Ronin")
    world.put("3", title="Untold")
    found = bring_in(
        world,
        ImportRow("1", "text", " A tense duel. "),
        ImportRow("1", "image", "A city at night."),
        ImportRow("2", "image", "A case full of ice."),  # its picture is only where it was described
    )
    assert outcomes(found) == ["inserted"] * 3
    recipe = world.control.recipes.resolve("default", "default")
    spec = world.control.recipes.description(recipe.description_recipes["text"]).spec
    assert (spec["describer"], spec["model"], spec["is_mllm"]) == ("import", "gpt-x", True)

    job = await world.run(JobSpec(describer="import"))
    assert job.state is JobState.SUCCEEDED
    assert job.recipe_id == recipe.recipe_id
    assert counts(job, "applicable", "described", "reused", "failed", "encoded") == {
        "original": (3, 0, 0, 0, 3),
        "text": (1, 0, 1, 0, 1),
        "image": (2, 0, 2, 0, 2),
        "hybrid": (0, 0, 0, 0, 0),
        "reflect": (0, 0, 0, 0, 0),
    }
    assert world.present("1", "2", "3") == {
        "1": {"original", "text", "image"},
        "2": {"original", "image"},
        "3": {"original"},
    }
    rows = world.rows("1", "2")
    assert rows["1", "text"].text == "A tense duel."
    assert rows["1", "text"].provenance["is_mllm"] is True
    items = world.catalog.items.get(["1", "2"])
    assert not routes.is_stale(items["2"], "image", rows["2", "image"].input_hash)
    world.put("1", title="Heat (1995)")
    changed = world.catalog.items.get(["1"])["1"]
    assert routes.is_stale(changed, "text", rows["1", "text"].input_hash)

    # A team's own texts stay until it brings others; only these are encoded then.
    again = bring_in(world, ImportRow("1", "text", "A tense duel."), ImportRow("1", "image", "Los Angeles at night."))
    assert outcomes(again) == ["updated", "updated"]  # the first one was made from another item before
    second = await world.run(JobSpec(describer="import"))
    assert counts(second, "encoded") == {"original": 1, "text": 0, "image": 1, "hybrid": 0, "reflect": 0}
    assert outcomes(bring_in(world, ImportRow("2", "image", "A case full of ice."))) == ["unchanged"]


def test_import_rejects_bad_rows_alone(world: World):
    world.put("1", title="Heat")
    found = bring_in(
        world,
        ImportRow("1", "text", "First."),
        ImportRow("nobody", "text", "Whose?"),
        ImportRow("1", "smell", "Smoke."),
        ImportRow("1", "hybrid", " \n "),
        ImportRow("1", "image", "x" * (64 * 1024 + 1)),
        ImportRow("1", "text", "Second."),
        ImportRow("1", "text", "First. "),
    )
    assert outcomes(found) == [
        "inserted",
        "ITEM_NOT_FOUND",
        "UNKNOWN_ROUTE",
        "DESCRIPTION_UNUSABLE",
        "DESCRIPTION_UNUSABLE",
        "DUPLICATE_ITEM_ID",
        "unchanged",
    ]
    assert [one.item_id for one in found] == ["1", "nobody", "1", "1", "1", "1", "1"]
    assert {key: row.text for key, row in world.rows("1").items()} == {("1", "text"): "First."}


def test_import_without_a_model_or_a_usable_row_binds_nothing(world: World):
    world.put("1", title="Heat")
    with pytest.raises(ServiceError) as caught:
        bring_in(world, ImportRow("1", "text", "First."), model=" ")
    assert caught.value.violations[0].field == "model"
    bring_in(world, ImportRow("nobody", "text", "Whose?"))
    with pytest.raises(ServiceError) as caught:
        world.control.recipes.resolve("default", "default")
    assert caught.value.reason == "RECIPE_NOT_FOUND"


async def test_import_jobs_need_an_imported_recipe(world: World):
    world.put("1", title="Heat")
    await world.run()
    with pytest.raises(ServiceError) as caught:
        world.start(JobSpec(describer="import"))
    assert caught.value.reason == "DESCRIBER_UNAVAILABLE"
    assert "import some under that name" in caught.value.message


async def test_name_that_moves_while_a_job_waits_does_not_move_the_job(world: World):
    world.put("1", title="Heat")
    bring_in(world, ImportRow("1", "text", "By one."), model="one")
    job = world.start(JobSpec(describer="import"))
    bring_in(world, ImportRow("1", "text", "By another."), model="another")
    await world.claimed().run()
    ended = world.control.jobs.get(job.job_id)
    assert ended.state is JobState.SUCCEEDED
    table = world.catalog.embeddings(job.recipe_id)
    assert await asyncio.to_thread(table.hashes, ["1"]) == {
        "1": {
            "original": world.catalog.items.get(["1"])["1"].attributes_hash,
            "text": routes.text_hash("By one."),
            "image": None,
            "hybrid": None,
            "reflect": None,
        }
    }


def test_automatic_jobs_keep_to_imported_descriptions(world: World):
    world.put("1", title="Heat")
    bring_in(world, ImportRow("1", "text", "A duel."))
    imported = world.control.recipes.resolve("default", "default").recipe_id
    job = ensure_auto(world)
    assert (job.describer, job.recipe_id) == ("import", imported)
    assert world.control.recipes.resolve("default", "default").recipe_id == imported
