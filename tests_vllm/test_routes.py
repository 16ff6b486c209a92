from __future__ import annotations

from dataclasses import replace

import pytest
from dmesr_server.enrichment import guard
from dmesr_server.enrichment.describers import DescriptionResult, specimen
from dmesr_server.enrichment.describers.mllm import MllmDescriber
from dmesr_server.enrichment.engines import Sampling
from dmesr_server.enrichment.engines.vllm import VllmEngine
from dmesr_server.enrichment.refinement import CONVERGED, MAX_ROUNDS, UNUSABLE_REVISION
from PIL import Image
from tiny_model import PIXELS

BLOCK = 32  # tokens; the prefix cache counts whole blocks


async def described(describer: MllmDescriber, *routes: str, name: str) -> dict[str, DescriptionResult]:
    picture = specimen.picture(pixels=PIXELS)
    picture.putpixel((0, 0), tuple(name.encode()[:3]))  # each test's own: no other one has put it into the cache
    requests = [specimen.request(route, pixels=PIXELS) for route in routes]
    asked = [replace(one, item_id=name, picture=picture if one.picture is not None else None) for one in requests]
    answers = dict(zip(routes, await describer.describe(asked), strict=True))
    for route, answer in answers.items():
        assert isinstance(answer, DescriptionResult), f"{route}: {answer}"
        assert guard.problem(answer.text) is None
        assert answer.tokens_in > 0
        assert answer.tokens_out > 0
        assert answer.milliseconds > 0
        assert answer.sampling["seed"] >= 0
    return answers


async def test_every_route_in_rounds(describer: MllmDescriber) -> None:
    answers = await described(describer, "text", "image", "hybrid", "reflect", name="rounds")
    hybrid = answers["hybrid"]
    assert hybrid.stop_reason in (MAX_ROUNDS, CONVERGED, UNUSABLE_REVISION)
    assert 1 <= hybrid.rounds <= 2
    gain = hybrid.sampling["refinement"]
    assert gain["draft_words"] > 0
    assert len(gain["new_words"]) <= hybrid.rounds
    # A draft, then a review and a revision for each round.
    assert hybrid.tokens_in > 3 * answers["reflect"].tokens_in - 1
    assert [answers[route].rounds for route in ("text", "image", "reflect")] == [0, 0, 0]


async def test_every_route_in_single_mode(single: MllmDescriber) -> None:
    answers = await described(single, "text", "image", "hybrid", "reflect", name="single")
    assert answers["hybrid"].rounds == 0
    assert "refinement" not in answers["hybrid"].sampling
    assert answers["hybrid"].tokens_out <= 24 * 4  # one answer, and up to three after one that the guard refused


async def test_the_picture_is_read_once_for_an_item(single: MllmDescriber, vllm_engine: VllmEngine) -> None:
    turns = (await opening(single, "image"))[:1]
    system = await vllm_engine.count_tokens(turns)
    answers = await described(single, "image", "hybrid", "reflect", name="cache")
    assert system is not None
    picture = 64  # tokens of 8 × 8 merged patches
    for route in ("hybrid", "reflect"):
        retries = answers[route].sampling.get("retries", 0)
        if not retries:
            assert answers[route].tokens_cached >= (system.total + picture) // BLOCK * BLOCK - BLOCK
    assert answers["hybrid"].tokens_cached >= picture


async def opening(describer: MllmDescriber, route: str) -> list:
    from dmesr_server.enrichment.describers.mllm_description import Description

    request = specimen.request(route, pixels=PIXELS)
    return list(Description(describer._means, request).opening(request.attributes))


async def test_a_round_finds_the_prompt_of_the_draft_in_the_cache(
    describer: MllmDescriber, vllm_engine: VllmEngine
) -> None:
    from dmesr_server.enrichment import prompts

    turns = await opening(describer, "hybrid")
    sampling = Sampling(max_tokens=24, temperature=1.0, seed=5)
    draft = await vllm_engine.generate(turns, sampling=sampling)
    reviewed = prompts.load(None).review(turns, guard.clean(draft.text), domain="film", language="en")
    review = await vllm_engine.generate(reviewed, sampling=sampling)
    assert review.tokens_cached >= draft.tokens_in // BLOCK * BLOCK - BLOCK
    assert review.tokens_cached > 0
    revised = prompts.load(None).revise(reviewed, guard.points(review.text), domain="film", language="en")
    revision = await vllm_engine.generate(revised, sampling=sampling)
    assert revision.tokens_cached >= review.tokens_in // BLOCK * BLOCK - BLOCK


async def test_the_picture_shows_in_the_answer(vllm_engine: VllmEngine, describer: MllmDescriber) -> None:
    turns = await opening(describer, "image")
    upside_down = [replace(turn, picture=turn.picture and turn.picture.rotate(180)) for turn in turns]
    greedy = Sampling(max_tokens=16)
    one, other = [await vllm_engine.generate(said, sampling=greedy) for said in (turns, upside_down)]
    assert one.token_ids != other.token_ids
    assert one.tokens_in == other.tokens_in


async def test_attributes_are_shortened_to_fit_and_it_is_recorded(single: MllmDescriber) -> None:
    request = specimen.request("hybrid", pixels=PIXELS)
    long = replace(
        request, attributes=(*request.attributes, ("review", ("It was a very long film about a kite. " * 200,)))
    )
    (answer,) = await single.describe([long])
    assert isinstance(answer, DescriptionResult), answer
    record = answer.sampling["shortened"]
    assert record["rule"] == "longest-first-1"
    assert record["cut"] == ["review"]
    assert record["characters"][0] > 7000 > record["characters"][1] > 500


async def test_a_picture_that_the_model_refuses_fails_its_routes_alone(describer: MllmDescriber) -> None:
    strip = Image.new("RGB", (4000, 4), "red")
    requests = [replace(specimen.request(route, pixels=PIXELS), picture=strip) for route in ("image", "hybrid")]
    text = specimen.request("text", pixels=PIXELS)
    image, hybrid, plain = await describer.describe([*requests, text])
    assert image.reason == hybrid.reason == "PICTURE_UNREADABLE"
    assert "aspect ratio" in image.message
    assert isinstance(plain, DescriptionResult)


@pytest.mark.parametrize("route", ["text", "image", "hybrid", "reflect"])
def test_the_recipe_names_what_shapes_the_text(describer: MllmDescriber, route: str) -> None:
    fields = describer.recipe_fields(route)
    assert describer.model.startswith("tiny-qwen2.5-vl@")
    assert describer.engine.startswith("vllm 0.")
    assert len(fields["prompt_revision"]) == 12
    assert fields["sampling"]["temperature"] == 1.0
    assert fields["dtype"] == "float32"
    assert ("picture_pixels" in fields) == (route != "text")
    assert ("max_rounds" in fields) == (route == "hybrid")
