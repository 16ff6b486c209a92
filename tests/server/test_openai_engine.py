from __future__ import annotations

import asyncio
import base64
import email.utils
import io
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from dmesr_server.config import EnrichmentConfig, load
from dmesr_server.enrichment import openai_endpoint
from dmesr_server.enrichment.engines import (
    EngineDown,
    Generation,
    PictureRejected,
    PromptTooLong,
    RequestFailed,
    Sampling,
    Turn,
)
from dmesr_server.enrichment.engines.openai import OpenaiEngine
from dmesr_server.errors import ServiceError
from openai_peer import Asked, Peer, Reply, chat, failed, talkative
from PIL import Image

TURNS = (Turn("system", "You describe films."), Turn("user", "Describe Heat."))
SAMPLING = Sampling(max_tokens=32, temperature=0.5, top_p=0.9, seed=7)
KEY = "sk-very-secret"

Configured = Callable[..., EnrichmentConfig]
Started = Callable[..., Awaitable[OpenaiEngine]]


@pytest.fixture
async def peer(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Peer]:
    monkeypatch.setattr(openai_endpoint, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    made = Peer()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def configured(peer: Peer) -> Configured:
    def make(flags: dict[str, Any] | None = None) -> EnrichmentConfig:
        values = {
            "mllm.model": "some-vl",
            "openai.base_url": peer.url,
            "openai.timeout_seconds": 2.0,
            "openai.max_retries": 3,
            **(flags or {}),
        }
        return load(flags={f"enrichment.{key}": value for key, value in values.items()}).enrichment

    return make


@pytest.fixture
async def started(configured: Configured) -> AsyncIterator[Started]:
    """Starts engines: `started({"openai.concurrency": 3})`. All are stopped after the test."""
    made: list[OpenaiEngine] = []

    async def start(flags: dict[str, Any] | None = None) -> OpenaiEngine:
        made.append(OpenaiEngine(configured(flags)))
        await made[-1].start()
        return made[-1]

    yield start
    for engine in made:
        await engine.stop()


@pytest.fixture
async def engine(peer: Peer, started: Started) -> OpenaiEngine:
    """Started; what its start asked is forgotten."""
    made = await started()
    peer.asked.clear()
    return made


def picture(*, side: int = 56) -> Image.Image:
    return Image.new("RGB", (side, 2 * side), (200, 30, 30))


async def refusal(engine: OpenaiEngine) -> str:
    with pytest.raises(ServiceError) as caught:
        await engine.start()
    assert caught.value.reason == "DESCRIBER_UNAVAILABLE"
    return caught.value.message


# What is sent and what is read


async def test_start_asks_for_models_and_one_short_answer(peer: Peer, started: Started):
    peer.models = Reply({"data": [{"id": "other"}, {"id": "some-vl", "owned_by": "vllm", "max_model_len": 4096}]})
    peer.version = Reply({"version": "0.32.0"})
    engine = await started()
    await engine.start()
    assert [(asked.method, asked.path) for asked in peer.asked] == [
        ("GET", "/v1/models"),
        ("GET", "/version"),
        ("POST", "/v1/chat/completions"),
    ]
    assert engine.context_tokens == 4096
    assert engine.version == f"vllm 0.32.0 at 127.0.0.1:{peer.port}"
    assert "authorization" not in peer.asked[0].headers


async def test_a_conversation_and_its_sampling(peer: Peer, engine: OpenaiEngine):
    peer.answer = lambda _: chat(
        "Two men.", prompt_tokens=40, completion_tokens=3, prompt_tokens_details={"cached_tokens": 16}
    )
    made = await engine.generate(TURNS, sampling=SAMPLING)
    assert made == Generation("Two men.", "stop", 40, 3, 16, made.milliseconds)
    assert 0 < made.milliseconds < 2000
    assert peer.posts[0].body == {
        "model": "some-vl",
        "messages": [
            {"role": "system", "content": "You describe films."},
            {"role": "user", "content": "Describe Heat."},
        ],
        "max_tokens": 32,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
    }


async def test_a_picture_goes_before_its_text_as_a_jpeg_of_the_same_size(peer: Peer, engine: OpenaiEngine):
    shown = picture()
    turns = (TURNS[0], Turn("user", "Describe the poster.", shown))
    made = await asyncio.gather(*(engine.generate(turns, sampling=SAMPLING) for _ in range(3)))
    assert made[0].tokens_in == 106
    content = peer.posts[0].body["messages"][1]["content"]
    assert [part["type"] for part in content] == ["image_url", "text"]
    head, data = content[0]["image_url"]["url"].split(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as decoded:
        assert (decoded.format, decoded.size) == ("JPEG", (56, 112))
        assert all(abs(was - now) < 4 for was, now in zip((200, 30, 30), decoded.getpixel((20, 20)), strict=True))


async def test_png_loses_nothing(peer: Peer, started: Started):
    engine = await started({"openai.picture_format": "png"})
    await engine.generate([Turn("user", "Describe it.", picture())], sampling=SAMPLING)
    (uri,) = peer.posts[1].pictures
    with Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2]))) as decoded:
        assert decoded.tobytes() == picture().tobytes()


@pytest.mark.parametrize(
    ("owner", "sent"),
    [
        ("vllm", {"repetition_penalty": 1.0, "top_k": 0, "min_p": 0.0}),
        ("llamacpp", {"repeat_penalty": 1.0, "top_k": 0, "min_p": 0.0}),
    ],
)
async def test_a_server_that_would_add_its_own_sampling_is_told_not_to(
    peer: Peer, started: Started, owner: str, sent: dict[str, Any]
):
    peer.models = Reply({"data": [{"id": "some-vl", "owned_by": owner}]})
    engine = await started()
    await engine.generate(TURNS, sampling=SAMPLING)
    body = peer.posts[-1].body
    assert {name: body[name] for name in sent} == sent
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


async def test_omitted_and_further_fields(peer: Peer, configured: Configured, started: Started):
    engine = await started({"openai.omit": ["seed", "repetition_penalty"], "openai.extra": {"random_seed": 3}})
    await engine.generate(TURNS, sampling=SAMPLING)
    body = peer.posts[-1].body
    assert body["random_seed"] == 3
    assert not {"seed", "repetition_penalty"} & body.keys()
    plain = OpenaiEngine(configured())
    assert dict(engine.recipe_fields()) == {
        **plain.recipe_fields(),
        "omit": ["repetition_penalty", "seed"],
        "extra": {"random_seed": 3},
    }


async def test_models_that_know_max_tokens_by_its_newer_name(peer: Peer, started: Started):
    def answer(asked: Asked) -> Reply:
        if "max_tokens" in asked.body:
            return failed(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return talkative(asked)

    peer.answer = answer
    engine = await started()
    await engine.generate(TURNS, sampling=SAMPLING)
    assert peer.posts[-1].body["max_completion_tokens"] == 32


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"choices": [{"message": {"content": None, "refusal": "I won't."}}]}, "the model declines: I won't"),
        ({"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]}, "content filter"),
    ],
)
async def test_an_answer_that_is_withheld_fails_alone(peer: Peer, engine: OpenaiEngine, body: Any, message: str):
    peer.script.append(Reply(body))
    with pytest.raises(RequestFailed, match=message):
        await engine.generate(TURNS, sampling=SAMPLING)
    assert len(peer.posts) == 1


async def test_an_answer_in_parts_cut_at_the_limit_without_usage(peer: Peer, engine: OpenaiEngine):
    parts = [{"type": "text", "text": "Two "}, {"type": "text", "text": "men"}]
    peer.script.append(Reply({"choices": [{"message": {"content": parts}, "finish_reason": "length"}]}))
    made = await engine.generate(TURNS, sampling=SAMPLING)
    assert (made.text, made.finish_reason, made.tokens_in, made.tokens_out) == ("Two men", "length", 0, 0)


# Patience


@pytest.mark.parametrize(
    "reply",
    [
        failed(500),
        failed(503, "overloaded"),
        failed(408),
        Reply({"choices": []}, cut=True),
        Reply(raw=b"", cut=True),
        Reply(raw=b'{"choices": [{"mess'),
        Reply(raw=b"<html>busy</html>"),
        Reply({"object": "error"}),
        Reply({"choices": [{"message": {"content": 3}}]}),
        Reply({"error": {"message": "upstream is busy", "code": 502}}),
        chat("late").__class__(seconds=5.0),
    ],
    ids=[
        "500",
        "503",
        "408",
        "cut",
        "cut-at-once",
        "half-json",
        "html",
        "no-choice",
        "no-text",
        "error-as-200",
        "slow",
    ],
)
async def test_what_passes_is_tried_again(peer: Peer, started: Started, reply: Reply):
    engine = await started({"openai.timeout_seconds": 0.4})
    peer.asked.clear()
    peer.script += [reply, reply]
    made = await engine.generate(TURNS, sampling=SAMPLING)
    assert made.text.startswith("A quiet film")
    assert len(peer.posts) == 3


async def test_retry_after_holds_every_call(peer: Peer, engine: OpenaiEngine):
    peer.script.append(failed(429, "slow down", headers={"Retry-After": "1"}))
    began = time.monotonic()
    first = asyncio.create_task(engine.generate(TURNS, sampling=SAMPLING))
    await peer.heard(1)
    await asyncio.sleep(0.1)
    await asyncio.gather(first, *(engine.generate(TURNS, sampling=SAMPLING) for _ in range(4)))
    assert [asked.at - began >= 1 for asked in peer.posts] == [False, True, True, True, True, True]


async def test_retry_after_as_a_date_and_in_milliseconds(peer: Peer, engine: OpenaiEngine):
    date = email.utils.format_datetime(
        email.utils.datetime.datetime.fromtimestamp(time.time() + 2, email.utils.datetime.timezone.utc), usegmt=True
    )
    peer.script += [
        failed(429, headers={"Retry-After": date}),
        failed(503, headers={"retry-after-ms": "300", "retry-after": "60"}),
    ]
    began = time.monotonic()
    await engine.generate(TURNS, sampling=SAMPLING)
    at = [asked.at - began for asked in peer.posts]
    assert at[1] >= 0.9  # the date has no parts of seconds
    assert 0.3 <= at[2] - at[1] < 30, "the pause in milliseconds, not the one in seconds"


async def test_a_pause_of_hours_ends_the_job_instead(peer: Peer, engine: OpenaiEngine):
    peer.script.append(failed(429, "daily limit", headers={"Retry-After": "7200"}))
    with pytest.raises(ServiceError, match=r"daily limit.*asks for a pause of 7200 s.*start the job again"):
        await engine.generate(TURNS, sampling=SAMPLING)


async def test_a_rate_limit_is_settled_with(peer: Peer, started: Started):
    """A window of four calls in a tenth of a second, far below what the engine would send."""
    windows: dict[int, int] = {}

    def answer(asked: Asked) -> Reply:
        window = int(asked.at * 10)
        windows[window] = windows.get(window, 0) + 1
        if windows[window] > 4:
            return failed(429, headers={"retry-after-ms": "100"})
        return talkative(asked)

    peer.answer = answer
    engine = await started({"openai.concurrency": 16})
    made = await asyncio.gather(*(engine.generate(TURNS, sampling=SAMPLING) for _ in range(40)))
    assert len(made) == 40
    assert peer.most_in_flight <= 16


async def test_calls_in_flight_are_bounded(peer: Peer, started: Started):
    peer.answer = lambda asked: Reply(talkative(asked).body, seconds=0.02)
    engine = await started({"openai.concurrency": 3})
    assert engine.concurrency == 3
    await asyncio.gather(*(engine.generate(TURNS, sampling=SAMPLING) for _ in range(12)))
    assert peer.most_in_flight == 3


# Patience that comes to an end


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (failed(500, "tensor is sad"), r"answers 500 \(tensor is sad\) \(asked 4 times"),
        (Reply(seconds=5.0), r"gave no answer within 0.3 s \(asked 4 times"),
        (Reply(raw=b"<html>"), r"answers text/html that is no JSON.*asked 4 times"),
    ],
    ids=["500", "slow", "html"],
)
async def test_one_call_fails_when_its_retries_are_used_up(peer: Peer, started: Started, reply: Reply, message: str):
    engine = await started({"openai.timeout_seconds": 0.3})
    peer.answer = lambda _: reply
    with pytest.raises(RequestFailed, match=message):
        await engine.generate(TURNS, sampling=SAMPLING)
    peer.answer = talkative
    assert (await engine.generate(TURNS, sampling=SAMPLING)).text


async def test_an_endpoint_that_is_gone_is_down_and_may_come_back(peer: Peer, engine: OpenaiEngine):
    await peer.stop()
    with pytest.raises(EngineDown, match=r"127.0.0.1:\d+ cannot be reached: .*asked 4 times"):
        await engine.generate(TURNS, sampling=SAMPLING)
    await engine.stop()
    with pytest.raises(EngineDown, match="not been reached"):
        await engine.generate(TURNS, sampling=SAMPLING)
    await peer.start()
    await engine.start()
    assert (await engine.generate(TURNS, sampling=SAMPLING)).text


async def test_one_request_that_is_cut_off_does_not_bring_the_others_down(peer: Peer, engine: OpenaiEngine):
    peer.answer = lambda asked: Reply(cut=True) if "poison" in asked.words else talkative(asked)
    poison = asyncio.create_task(engine.generate([Turn("user", "poison")], sampling=SAMPLING))
    while not poison.done():
        assert (await engine.generate(TURNS, sampling=SAMPLING)).text
    with pytest.raises(RequestFailed, match="cannot be reached"):
        await poison


async def test_a_limit_that_lets_nothing_through_ends_the_job(peer: Peer, engine: OpenaiEngine):
    peer.answer = lambda _: failed(429, "tokens per minute")
    with pytest.raises(ServiceError, match=r"tokens per minute\) \(asked 4 times.*lower enrichment.openai.concurrency"):
        await engine.generate(TURNS, sampling=SAMPLING)


async def test_no_credit_is_not_asked_again(peer: Peer, engine: OpenaiEngine):
    peer.answer = lambda _: failed(429, "You exceeded your current quota", code="insufficient_quota")
    with pytest.raises(ServiceError, match=r"exceeded your current quota.*credit"):
        await engine.generate(TURNS, sampling=SAMPLING)
    assert len(peer.posts) == 1


async def test_stop_ends_open_calls(peer: Peer, engine: OpenaiEngine):
    peer.answer = lambda _: Reply(seconds=2.0)
    calls = [asyncio.create_task(engine.generate(TURNS, sampling=SAMPLING)) for _ in range(2)]
    await peer.heard(2)
    await engine.stop()
    assert [type(error) for error in await asyncio.gather(*calls, return_exceptions=True)] == [EngineDown, EngineDown]


async def test_a_caller_that_is_cancelled_leaves_nothing_behind(peer: Peer, started: Started):
    engine = await started({"openai.concurrency": 1})
    peer.answer = lambda _: Reply(seconds=2.0)
    calls = [asyncio.create_task(engine.generate(TURNS, sampling=SAMPLING)) for _ in range(2)]
    await peer.heard(2)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    assert all(call.cancelled() for call in calls)
    peer.answer = talkative
    assert (await asyncio.wait_for(engine.generate(TURNS, sampling=SAMPLING), 1)).text


# Refusals


@pytest.mark.parametrize(
    ("error", "expected", "actual"),
    [
        (
            "This model's maximum context length is 1,024 tokens. However, your prompt contains 1025 input tokens, "
            "which exceeds this limit even without any output tokens.",
            992,
            1025,
        ),
        ("This model's maximum context length is 1024 tokens, your prompt contains at least 1025 input tokens", 0, 0),
        (
            "This model's maximum context length is 1024 tokens. However, you requested 1232 tokens (1200 in the "
            "messages, 32 in the completion).",
            992,
            1200,
        ),
        (
            "'max_tokens' is too large: 32. This model's maximum context length is 1024 tokens and your request has "
            "1001 input tokens",
            992,
            1001,
        ),
        ("Input tokens exceed the context window of this model.", 0, 0),
    ],
)
async def test_a_prompt_over_the_context(peer: Peer, engine: OpenaiEngine, error: str, expected: int, actual: int):
    peer.script.append(failed(400, error, param="max_tokens"))
    with pytest.raises(PromptTooLong) as caught:
        await engine.generate(TURNS, sampling=SAMPLING)
    assert (caught.value.expected, caught.value.actual) == (expected, actual)
    assert len(peer.posts) == 1


async def test_a_prompt_over_the_context_of_llama_cpp(peer: Peer, engine: OpenaiEngine):
    said = {"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 5000, "n_ctx": 4096}
    peer.script.append(failed(400, "the request exceeds the available context size", **said))
    with pytest.raises(PromptTooLong) as caught:
        await engine.generate(TURNS, sampling=SAMPLING)
    assert (caught.value.expected, caught.value.actual) == (4064, 5000)


async def test_an_endpoint_without_vision(peer: Peer, engine: OpenaiEngine):
    shown = [Turn("user", "Describe it.", picture())]
    peer.script += [
        failed(400, "some-vl is not a multimodal model"),
        failed(500, "image input is not supported - hint: you may need to provide the mmproj"),
        failed(413, "too large"),
    ]
    for message in ("not a multimodal model", "mmproj", "answers 413"):
        with pytest.raises(PictureRejected, match=message):
            await engine.generate(shown, sampling=SAMPLING)
    assert len(peer.posts) == 3


async def test_an_endpoint_that_drops_pictures_unsaid(peer: Peer, engine: OpenaiEngine, started: Started):
    shown = [Turn("user", "Describe it.", picture())]
    peer.answer = lambda _: chat(prompt_tokens=9, completion_tokens=5)
    with pytest.raises(PictureRejected, match=r"drops pictures: the model reads 9 tokens with .*check_vision"):
        await engine.generate(shown, sampling=SAMPLING)
    unchecked = await started({"openai.check_vision": False})
    assert (await unchecked.generate(shown, sampling=SAMPLING)).text


async def test_vision_is_looked_into_once(peer: Peer, engine: OpenaiEngine):
    shown = [Turn("user", "Describe it.", picture())]
    for _ in range(3):
        await engine.generate(shown, sampling=SAMPLING)
    assert [len(asked.pictures) for asked in peer.posts] == [1, 0, 1, 1]


@pytest.mark.parametrize(
    "model",
    [
        {"architecture": {"input_modalities": ["text"]}},
        {"capabilities": {"completion_chat": True, "vision": False}},
        {"capabilities": ["completion"], "owned_by": "llamacpp"},
    ],
    ids=["openrouter", "mistral", "llama.cpp"],
)
async def test_a_list_that_says_that_the_model_is_blind(peer: Peer, configured: Configured, model: dict[str, Any]):
    peer.models = Reply({"data": [{"id": "some-vl", **model}]})
    assert "says that it takes no pictures; choose a multimodal model" in await refusal(OpenaiEngine(configured()))
    assert peer.posts == []


# Before work starts


async def test_a_wrong_key(peer: Peer, configured: Configured, monkeypatch: pytest.MonkeyPatch):
    peer.key = "right"
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    message = await refusal(OpenaiEngine(configured()))
    assert "answers 401" in message
    assert "the enricher's key in OPENAI_API_KEY is wrong" in message
    assert KEY not in message
    assert len(peer.asked) == 1


async def test_no_key(peer: Peer, configured: Configured):
    peer.key = "right"
    assert "give the enricher a key in the environment variable MY_KEY" in await refusal(
        OpenaiEngine(configured({"openai.api_key_env": "MY_KEY"}))
    )


async def test_a_key_that_is_for_chats_only(peer: Peer, started: Started, monkeypatch: pytest.MonkeyPatch):
    peer.key = KEY
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    peer.models = failed(403, "this key may not list models")
    engine = await started()
    assert (await engine.generate(TURNS, sampling=SAMPLING)).text


async def test_a_key_that_is_withdrawn_ends_the_job(peer: Peer, engine: OpenaiEngine):
    peer.key = "new"
    with pytest.raises(ServiceError, match="answers 401"):
        await engine.generate(TURNS, sampling=SAMPLING)


async def test_moderation_is_no_wrong_key(peer: Peer, engine: OpenaiEngine):
    peer.script.append(failed(403, "flagged"))
    with pytest.raises(RequestFailed, match=r"answers 403 \(flagged\)"):
        await engine.generate(TURNS, sampling=SAMPLING)


async def test_a_model_that_is_not_there(peer: Peer, configured: Configured):
    peer.models = Reply({"data": [{"id": "this-vl"}, {"id": "that-vl"}]})
    peer.answer = lambda _: failed(404, "The model `some-vl` does not exist.", code="model_not_found")
    message = await refusal(OpenaiEngine(configured()))
    assert "does not exist" in message
    assert message.endswith("set enrichment.mllm.model to one that it lists: this-vl, that-vl")


async def test_a_base_url_without_its_version(peer: Peer, configured: Configured):
    peer.models = peer.version = failed(404, "Not Found")
    peer.answer = lambda _: Reply(raw=b"<html>", status=404)
    assert "ends in the API's version, such as /v1" in await refusal(OpenaiEngine(configured()))


async def test_a_page_that_is_no_api(peer: Peer, configured: Configured):
    peer.models = Reply(raw=b"<html>Welcome</html>")
    assert "text/html that is no JSON; does the base URL end in /v1?" in await refusal(OpenaiEngine(configured()))


async def test_an_endpoint_that_has_moved(peer: Peer, configured: Configured):
    peer.models = Reply(raw=b"", status=301, headers={"Location": "https://elsewhere/v1/models"})
    message = await refusal(OpenaiEngine(configured()))
    assert "answers 301: it has moved to https://elsewhere/v1/models" in message


async def test_nobody_there(peer: Peer, configured: Configured):
    await peer.stop()
    message = await refusal(OpenaiEngine(configured()))
    assert "cannot be reached" in message
    assert "enrichment.openai.base_url" in message


@pytest.mark.parametrize("url", ["127.0.0.1:8000/v1", "ftp://example.org/v1", "http://", "http://[::1"])
def test_an_address_that_is_none(url: str, monkeypatch: pytest.MonkeyPatch):
    config = load(flags={"enrichment.openai.base_url": url}).enrichment
    with pytest.raises(ServiceError, match=r"set enrichment\.openai\.base_url"):
        OpenaiEngine(config)


async def test_a_field_that_the_endpoint_does_not_take(peer: Peer, configured: Configured):
    peer.answer = lambda _: failed(
        400, "Unrecognized request argument supplied: repetition_penalty", type="invalid_request_error"
    )
    message = await refusal(OpenaiEngine(configured()))
    assert 'enrichment.openai.omit = ["repetition_penalty"]' in message


async def test_nothing_private_is_logged(
    peer: Peer, started: Started, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    peer.key = KEY
    with caplog.at_level(logging.DEBUG, "dmesr_server"):
        engine = await started()
        peer.script += [failed(429, headers={"Retry-After": "0.1"}), failed(500, KEY), failed(400, "Describe Heat.")]
        with pytest.raises(RequestFailed):
            await engine.generate(TURNS, sampling=SAMPLING)
    told = "\n".join(record.getMessage() for record in caplog.records)
    assert "every call to it waits" in told
    assert KEY not in told
    assert "Heat" not in told
