"""Figures of descriptions, each worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from dmesr_server.control import DescriptionRecipeRow, RecipeRow
from dmesr_server.enrichment import corrections, estimating, routes, statistics
from dmesr_server.enrichment.specs import JobSpec, means
from dmesr_server.store import DescriptionRow
from enriching import World, picture

ROUTES = {"text": "t" * 16, "image": "i" * 16, "hybrid": "h" * 16, "reflect": "r" * 16}


@pytest.fixture
def recipe(world: World) -> RecipeRow:
    """A recipe as an MLLM makes it."""
    for route, recipe_id in ROUTES.items():
        world.control.recipes.save_description("default", DescriptionRecipeRow(recipe_id, route, {}))
    world.control.recipes.save_embedding("default", "e" * 16, {}, ROUTES)
    return world.control.recipes.resolve("default", "e" * 16)


def describe(world: World, item_id: str, route: str, text: str | None, *, failed: str = "", **told: Any) -> None:
    item = world.catalog.items.get([item_id])[item_id]
    row = DescriptionRow(
        item_id,
        route,
        ROUTES[route],
        routes.input_hash(item, route) or "",
        text,
        failure_reason=failed or None,
        provenance=told,
    )
    world.catalog.descriptions.upsert([row])


def gathered(world: World, recipe: RecipeRow) -> dict[str, statistics.RouteTally]:
    found = statistics.gather(control=world.control, store=world.catalog, recipe=recipe)
    return {tally.route: tally for tally in found.routes}


def test_sums_by_hand(world: World, recipe: RecipeRow):
    world.put("1", title="Heat", data=picture((1, 2, 3)))
    world.put("2", title="Ran", data=picture((4, 5, 6)))
    world.put("3", title="Alien")
    cost = {"tokens_in": 100, "tokens_out": 20, "tokens_cached": 40, "milliseconds": 500.0, "stop_reason": "stop"}
    describe(world, "1", "text", "one two three", **cost)
    describe(world, "2", "text", "one two three four five", **{**cost, "stop_reason": "length"})
    describe(world, "3", "text", None, failed="DESCRIPTION_UNUSABLE")
    describe(world, "1", "image", None, failed="PICTURE_UNREADABLE")
    describe(world, "2", "image", None, failed="PICTURE_UNREADABLE")
    first = json.dumps({"seed": 0, "refinement": {"draft_words": 10, "new_words": [4, 1]}})
    second = json.dumps({"seed": 0, "refinement": {"draft_words": 30, "new_words": [6]}})
    describe(world, "1", "hybrid", "a", rounds=2, sampling=first, stop_reason="converged")
    describe(world, "2", "hybrid", "b", rounds=1, sampling=second, stop_reason="verdict")
    world.put("2", title="Ran (1985)", data=picture((4, 5, 6)))
    corrections.edit(store=world.catalog, recipe=recipe, item_id="1", route="text", text="by anna", author="anna")

    found = gathered(world, recipe)
    assert list(found) == ["text", "image", "hybrid"]  # nobody asked for reflect
    text, image, hybrid = found.values()
    assert (text.applicable, text.described, text.stale, text.corrected) == (3, 2, 1, 1)
    assert text.words == 2 + 5  # of what stands
    # What the describer made was paid for, corrected or not.
    assert (text.tokens_in, text.tokens_out, text.tokens_cached, text.milliseconds) == (200, 40, 80, 1_000.0)
    assert (text.failures, text.stop_reasons) == ({"DESCRIPTION_UNUSABLE": 1}, {"stop": 1, "length": 1})
    assert (image.applicable, image.described, image.failures) == (2, 0, {"PICTURE_UNREADABLE": 2})
    refined = hybrid.refinement
    assert (refined.refined, refined.rounds, refined.new_words) == (2, 3, [(2, 10), (1, 1)])
    assert refined.gain == (4 + 1 + 6) / (10 + 30)
    assert text.refinement.refined == 0
    assert text.refinement.gain == 0


def test_a_text_counts_where_the_route_does_not_apply(world: World, recipe: RecipeRow):
    world.put("1", title="Heat")
    describe(world, "1", "image", "as they saw it")
    describe(world, "1", "reflect", "as they thought it over")
    found = gathered(world, recipe)
    assert (found["image"].applicable, found["image"].described, found["image"].stale) == (1, 1, 0)
    assert found["reflect"].described == 1


def test_an_empty_catalog(world: World, recipe: RecipeRow):
    assert [tally.applicable for tally in gathered(world, recipe).values()] == [0, 0, 0]


def test_how_many_were_made_side_by_side_is_told_by_the_jobs_of_the_recipe(world: World, recipe: RecipeRow):
    world.put("1", title="Heat")
    describe(world, "1", "text", "one", tokens_out=20, milliseconds=500.0)

    def side_by_side() -> float:
        return statistics.gather(control=world.control, store=world.catalog, recipe=recipe).side_by_side

    def job(recipe_id: str, *, describe_seconds: float, milliseconds: float) -> None:
        world.control.jobs.create("default", {}, recipe_id, "vllm", "e", None)
        claimed = world.control.jobs.claim("test", 10)
        assert claimed is not None
        rates = {"describe_seconds": describe_seconds, "routes": {"text": {"milliseconds": milliseconds}}}
        world.control.jobs.finish(claimed.job.job_id, claimed.lease, "SUCCEEDED", None, {"rates": rates})

    assert side_by_side() == 1
    job("another", describe_seconds=1, milliseconds=64_000)
    assert side_by_side() == 1
    job(recipe.recipe_id, describe_seconds=2, milliseconds=16_000)
    job(recipe.recipe_id, describe_seconds=2, milliseconds=0)  # only encoded
    assert side_by_side() == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("A tense, brooding city-film.", 4),
        ("Ein düsterer Film über Männer – und Städte.", 7),
        ("两个男人。", 4),  # each character as one, the full stop as none
        ("映画 Heat", 3),
    ],
)
def test_words(text: str, words: int):
    assert statistics.count_words(text) == words


async def test_an_estimate_goes_by_the_same_recipe_first(world: World):
    """Tokens by hand: jobs of this recipe tell, not those of the same describer with other settings."""
    world.fill(10, pictures_every=100)
    settled = means(
        control=world.control, config=world.config, catalog=world.control.catalogs.get("default"), spec=JobSpec()
    )

    def job(recipe_id: str, **cost: float) -> None:
        world.control.jobs.create("default", {}, recipe_id, settled.describer.name, settled.encoder_name, None)
        claimed = world.control.jobs.claim("test", 10)
        assert claimed is not None
        progress = {
            "items_done": 2,
            "routes": [{"route": "text", "described": 2, "encoded": 2}],
            "rates": {
                "seconds": 10,
                "describe_seconds": 4,
                "encode_seconds": 1,
                "routes": {"text": {"described": 2, "encoded": 2, "characters": 20, "milliseconds": 8_000, **cost}},
            },
        }
        world.control.jobs.finish(claimed.job.job_id, claimed.lease, "SUCCEEDED", None, progress)

    def estimate() -> estimating.Estimate:
        spec = JobSpec(routes=("text",))
        return estimating.estimate(
            control=world.control, config=world.config, catalog=world.catalog, name="default", spec=spec
        )

    assert (estimate().tokens, estimate().tokens_out, estimate().sample_descriptions) == (None, None, 0)
    job("another", tokens=4_000, tokens_out=1_000)
    other = estimate()
    assert (other.tokens, other.tokens_out) == (20_000, 5_000)
    assert "others then" in other.basis
    job(settled.recipe.recipe_id, tokens=400, tokens_out=100)
    same = estimate()
    assert (same.tokens, same.tokens_out, same.sample_descriptions) == (2_000, 500, 2)
    assert same.seconds is not None
    assert same.seconds >= 20  # ten at two seconds each, two side by side as in the job
    assert "others then" not in same.basis
    assert "measured on 2 descriptions" in same.basis
