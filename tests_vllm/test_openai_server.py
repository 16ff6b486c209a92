"""The describer openai against vLLM's own OpenAI server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from dmesr_server.config import EnrichmentConfig
from dmesr_server.enrichment.describers import DescriptionResult, specimen
from dmesr_server.enrichment.describers.mllm import MllmDescriber
from dmesr_server.enrichment.engines import PictureRejected, PromptTooLong, RequestFailed, Sampling, Turn
from dmesr_server.enrichment.engines.openai import OpenaiEngine
from dmesr_server.enrichment.engines.vllm import VllmEngine
from dmesr_server.errors import ServiceError
from tiny_model import PIXELS

GREEDY = Sampling(max_tokens=16)
ROUTES = ("text", "image", "hybrid", "reflect")

Configured = Callable[..., EnrichmentConfig]
Flagged = Callable[..., dict[str, Any]]


@pytest.fixture
def flags(openai_server: str, monkeypatch: pytest.MonkeyPatch) -> Flagged:
    """Settings of the endpoint; the key is in the environment."""
    monkeypatch.setenv("TINY_KEY", "right-key")

    def make(**more: Any) -> dict[str, Any]:
        return {
            "mllm.model": "tiny",
            "openai.base_url": openai_server,
            "openai.api_key_env": "TINY_KEY",
            "openai.picture_format": "png",
            **{name.replace("__", "."): value for name, value in more.items()},
        }

    return make


@pytest.fixture
async def remote(configured: Configured, flags: Flagged) -> AsyncIterator[OpenaiEngine]:
    engine = OpenaiEngine(configured(flags()))
    await engine.start()
    yield engine
    await engine.stop()


def poster(name: str) -> Any:
    """A picture that no other test has put into the cache, of whole squares: neither engine resizes it."""
    picture = specimen.picture(pixels=PIXELS).resize((6 * 28, 8 * 28))
    picture.putpixel((0, 0), tuple(name.encode()[:3]))
    return picture


def turns(name: str, text: str = "Describe the poster.") -> list[Turn]:
    return [Turn("system", "You describe films."), Turn("user", text, poster(name))]


async def refusal(engine: OpenaiEngine) -> str:
    with pytest.raises(ServiceError) as caught:
        await engine.start()
    assert caught.value.reason == "DESCRIBER_UNAVAILABLE"
    return caught.value.message


async def test_what_the_server_tells_of_itself(remote: OpenaiEngine) -> None:
    assert remote.context_tokens == 1024
    assert remote.version.startswith("vllm 0.")
    assert " at 127.0.0.1:" in remote.version


@pytest.mark.parametrize("mode", ["rounds", "single"])
async def test_every_route(configured: Configured, flags: Flagged, mode: str) -> None:
    config = configured(flags(mllm__hybrid_mode=mode))
    describer = MllmDescriber(OpenaiEngine(config), config.mllm)
    await describer.start()
    picture = poster(f"{mode} of every route")
    asked = [replace(specimen.request(route, pixels=PIXELS), item_id=mode) for route in ROUTES]
    asked = [replace(one, picture=picture if one.picture is not None else None) for one in asked]
    answers = dict(zip(ROUTES, await describer.describe(asked), strict=True))
    for route, answer in answers.items():
        assert isinstance(answer, DescriptionResult), f"{route}: {answer}"
        assert answer.text
        assert answer.tokens_in > 0
        assert answer.tokens_out > 0
    assert (answers["hybrid"].rounds > 0) == (mode == "rounds")
    assert answers["hybrid"].tokens_cached > 0  # the image route has read the picture
    await describer.stop()


async def test_the_same_tokens_as_in_process(remote: OpenaiEngine, vllm_engine: VllmEngine) -> None:
    """Template, picture and sampling reach the model as the describer vllm hands them over."""
    for asked in (
        [Turn("system", "You describe films."), Turn("user", "Describe Heat in one sentence.")],
        turns("same", ""),
        turns("same", "Describe the poster of Heat."),
    ):
        there = await remote.generate(asked, sampling=GREEDY)
        here = await vllm_engine.generate(asked, sampling=GREEDY)
        assert there.text == here.text
        assert (there.tokens_in, there.tokens_out) == (here.tokens_in, here.tokens_out)


async def test_sampling_with_a_penalty_is_the_same_too(remote: OpenaiEngine, vllm_engine: VllmEngine) -> None:
    asked = [Turn("user", "Describe Heat in one sentence.")]
    for sampling in (replace(GREEDY, repetition_penalty=1.3), replace(GREEDY, temperature=1.0, top_p=0.9, seed=5)):
        there = await remote.generate(asked, sampling=sampling)
        here = await vllm_engine.generate(asked, sampling=sampling)
        assert there.text == here.text


async def test_the_prefix_cache_is_told(remote: OpenaiEngine) -> None:
    first = await remote.generate(turns("cache"), sampling=GREEDY)
    again = await remote.generate(turns("cache", "What colours has it?"), sampling=GREEDY)
    assert first.tokens_in > 64
    assert again.tokens_cached >= 32


async def test_many_at_once(remote: OpenaiEngine) -> None:
    asked = [turns("many", f"Describe number {number}.") for number in range(32)]
    alone = await remote.generate(asked[7], sampling=GREEDY)
    made = await asyncio.gather(*(remote.generate(one, sampling=GREEDY) for one in asked))
    assert len(made) == 32
    assert made[7].text == alone.text


async def test_a_prompt_over_the_context(remote: OpenaiEngine) -> None:
    for text in ("heat " * 1100, "heat " * 990, "heat " * 30_000):
        with pytest.raises(PromptTooLong) as caught:
            await remote.generate([Turn("user", text)], sampling=replace(GREEDY, max_tokens=64))
        assert caught.value.expected == 1024 - 64 < caught.value.actual


async def test_tokens_are_counted_without_generating(remote: OpenaiEngine, configured: Configured) -> None:
    asked = turns("count")
    count = await remote.count_tokens(asked)
    assert count is not None
    made = await remote.generate(asked, sampling=GREEDY)
    assert count.total == made.tokens_in
    assert count.picture == 8 * 6 + 2  # squares of 28 pixels, between two marks
    assert await OpenaiEngine(configured()).count_tokens(asked) is None


async def test_attributes_are_shortened_until_they_fit(configured: Configured, flags: Flagged) -> None:
    config = configured(flags())
    describer = MllmDescriber(OpenaiEngine(config), config.mllm)
    await describer.start()
    whole = replace(
        specimen.request("text", pixels=PIXELS), attributes=(("title", ("Heat",)), ("plot", ("so it goes, " * 700,)))
    )
    (answer,) = await describer.describe([whole])
    assert isinstance(answer, DescriptionResult), answer
    before, after = answer.sampling["shortened"]["characters"]
    assert answer.sampling["shortened"]["cut"] == ["plot"]
    assert 500 < after < before
    await describer.stop()


async def test_pictures_beyond_what_the_server_takes(remote: OpenaiEngine) -> None:
    asked = [Turn("user", "Compare.", poster("one")), Turn("assistant", "Done."), Turn("user", "Again.", poster("two"))]
    with pytest.raises(PictureRejected, match=r"answers 400 \(At most 1 image"):
        await remote.generate(asked, sampling=GREEDY)


async def test_sampling_that_the_server_refuses_fails_alone(remote: OpenaiEngine) -> None:
    with pytest.raises(RequestFailed, match="answers 400"):
        await remote.generate([Turn("user", "Hello.")], sampling=replace(GREEDY, top_p=3.0))


async def test_a_wrong_key(configured: Configured, flags: Flagged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_KEY", "wrong-key")
    message = await refusal(OpenaiEngine(configured(flags())))
    assert "answers 401" in message
    assert "the enricher's key in TINY_KEY is wrong" in message
    monkeypatch.delenv("TINY_KEY")
    assert "give the enricher a key" in await refusal(OpenaiEngine(configured(flags())))


async def test_a_model_that_the_server_does_not_have(configured: Configured, flags: Flagged) -> None:
    message = await refusal(OpenaiEngine(configured(flags(mllm__model="huge"))))
    assert message.endswith("set enrichment.mllm.model to one that it lists: tiny")


async def test_a_base_url_without_its_version(configured: Configured, flags: Flagged, openai_server: str) -> None:
    message = await refusal(OpenaiEngine(configured(flags(openai__base_url=openai_server.removesuffix("/v1")))))
    assert "ends in the API's version, such as /v1" in message
