from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from dmesr_server.config import EncoderConfig, load
from dmesr_server.enrichment import encoders, openai_endpoint
from dmesr_server.enrichment.encoders import Encoder
from dmesr_server.errors import ServiceError
from enriching import World, counts
from openai_peer import Asked, Peer, Reply, embeddings, failed

DIM = 16

Started = Callable[..., Awaitable[Encoder]]


@pytest.fixture
async def peer(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Peer]:
    monkeypatch.setattr(openai_endpoint, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    made = Peer()
    made.answer = embeddings
    await made.start()
    yield made
    await made.stop()


def settings(peer: Peer, **given: Any) -> EncoderConfig:
    values = {"kind": "openai", "model": "some-embedder", "dim": DIM, "base_url": peer.url, "max_retries": 3, **given}
    return load(flags={f"enrichment.encoder.{key}": value for key, value in values.items()}).enrichment.encoder


@pytest.fixture
async def started(peer: Peer) -> AsyncIterator[Started]:
    """Starts encoders: `started(batch_size=4)`. All are stopped after the test; what their start asked is forgotten."""
    made: list[Encoder] = []

    async def start(**given: Any) -> Encoder:
        made.append(encoders.create(settings(peer, **given)))
        await made[-1].start()
        peer.asked.clear()
        return made[-1]

    yield start
    for encoder in made:
        await encoder.stop()


def expected(text: str, dim: int = DIM) -> np.ndarray:
    """What the peer answers, of length 1."""
    vector = np.cos(np.arange(dim) * (1 + len(text))).astype(np.float32) + 2
    return vector / np.linalg.norm(vector)


async def refusal(peer: Peer, **given: Any) -> str:
    with pytest.raises(ServiceError) as caught:
        await encoders.create(settings(peer, **given)).start()
    assert caught.value.reason == "ENCODER_UNAVAILABLE"
    return caught.value.message


async def test_vectors_come_in_the_callers_order(peer: Peer, started: Started):
    encoder = await started(batch_size=3)
    texts = ["a b c", "a", "a b", "a", "a b c d e", "a b c d", "a", "ü" * 11]
    vectors_ND = await encoder.encode(texts)
    assert vectors_ND.dtype == np.float32
    np.testing.assert_allclose(vectors_ND, [expected(text) for text in texts], rtol=1e-6)
    sent = [asked.body["input"] for asked in peer.posts]
    assert sorted(map(len, sent)) == [3, 3]  # the same text once, so many in a call
    assert sorted(text for texts in sent for text in texts) == sorted(set(texts))


async def test_no_texts(started: Started):
    encoder = await started()
    assert (await encoder.encode([])).shape == (0, DIM)


async def test_a_call_is_bounded_in_bytes(peer: Peer, started: Started):
    encoder = await started()
    texts = [f"{number} {'ü' * 40_000}" for number in range(8)]  # 80 kB each
    assert np.isfinite(await encoder.encode(texts)).all()
    assert sorted(len(asked.body["input"]) for asked in peer.posts) == [2, 3, 3]


async def test_calls_in_flight_are_bounded(peer: Peer, started: Started):
    peer.answer = lambda asked: Reply(embeddings(asked).body, seconds=0.02)
    encoder = await started(batch_size=1, concurrency=3)
    await encoder.encode([f"text {'x' * number}" for number in range(12)])
    assert peer.most_in_flight == 3


async def test_servers_that_know_no_base64(peer: Peer, started: Started):
    def answer(asked: Asked) -> Reply:
        if asked.body["encoding_format"] == "base64":
            return failed(400, "only float is supported", param="encoding_format")
        return embeddings(asked)

    peer.answer = answer
    encoder = await started()
    np.testing.assert_allclose((await encoder.encode(["a b"]))[0], expected("a b"), rtol=1e-6)
    assert [asked.body["encoding_format"] for asked in peer.posts] == ["float"]


@pytest.mark.parametrize(
    ("model", "dim", "width", "sent"),
    [
        ("text-embedding-ada-002", None, 1536, None),
        ("text-embedding-3-small", None, 1536, None),
        ("text-embedding-3-large", None, 3072, None),
        ("text-embedding-3-large", 256, 256, 256),
        ("nomic-embed-text", 768, 768, None),
    ],
)
async def test_widths(peer: Peer, started: Started, model: str, dim: int | None, width: int, sent: int | None):
    peer.answer = lambda asked: embeddings(asked, dim=width)
    encoder = await started(model=model, dim=dim)
    assert encoder.dim == encoder.recipe_fields()["dim"] == width
    assert (await encoder.encode(["a"])).shape == (1, width)
    assert peer.posts[0].body.get("dimensions") == sent


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dim": None}, "the width of its vectors is not known; set enrichment.encoder.dim"),
        ({"model": "text-embedding-ada-002", "dim": 512}, "have 1536 dimensions, enrichment.encoder.dim is 512"),
        ({"model": "text-embedding-3-small", "dim": 2000}, "have at most 1536 dimensions"),
        ({"model": "bundled:all-MiniLM-L6-v2"}, "no model of an endpoint; set it"),
        ({"base_url": "localhost:8000"}, "set enrichment.encoder.base_url"),
    ],
)
def test_what_cannot_be_settled_is_told_before_anything_is_called(given: dict[str, Any], message: str):
    with pytest.raises(ServiceError) as caught:
        encoders.create(settings(Peer(), **given))
    assert caught.value.reason == "ENCODER_UNAVAILABLE"
    assert message in caught.value.message


def test_a_job_may_name_kind_and_model():
    chosen = encoders.chosen("openai:text-embedding-3-large", EncoderConfig(dim=256))
    assert (chosen.kind, chosen.model, encoders.create(chosen).dim) == ("openai", "text-embedding-3-large", 256)


# Bad endpoints


async def test_vectors_of_another_width_are_found_at_the_start(peer: Peer):
    message = await refusal(peer, dim=32)
    assert "gives vectors of width 16, expected 32; set enrichment.encoder.dim = 16" in message


async def test_vectors_of_another_width_end_the_job_later(peer: Peer, started: Started):
    encoder = await started()
    peer.answer = lambda asked: embeddings(asked, dim=8)
    with pytest.raises(ServiceError, match="width 8, expected 16"):
        await encoder.encode(["a", "b"])


def _short(asked: Asked) -> Reply:
    return Reply({"data": embeddings(asked).body["data"][1:]})


def _twice(asked: Asked) -> Reply:
    return Reply({"data": [{"index": 0, "embedding": [1.0] * DIM} for _ in asked.body["input"]]})


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (_short, "answers 1 vectors for 2 texts"),
        (_twice, "vectors that do not go with the texts"),
        (lambda _: Reply({"data": [{"embedding": "%%"}] * 2}), "vectors that cannot be read"),
        (lambda _: Reply({"data": "none"}), "answers no vectors for 2 texts"),
        (lambda _: Reply(raw=b"{"), "no JSON"),
        (lambda _: failed(500, "boom"), r"answers 500 \(boom\)"),
        (lambda _: Reply(cut=True), "cannot be reached"),
        (lambda _: failed(429, "slow down"), "lower enrichment.encoder.concurrency"),
        (lambda _: failed(429, code="insufficient_quota"), "credit"),
        (lambda _: failed(401), "give the enricher a key in the environment variable OPENAI_API_KEY"),
        (lambda _: failed(404, "no such model"), "see that it has the model"),
    ],
    ids=["short", "twice", "no-base64", "no-list", "no-json", "500", "cut", "429", "quota", "401", "404"],
)
async def test_an_endpoint_that_stays_bad_ends_the_job(
    peer: Peer, started: Started, answer: Callable[[Asked], Reply], message: str
):
    encoder = await started()
    peer.answer = answer
    with pytest.raises(ServiceError, match=message) as caught:
        await encoder.encode(["a", "b c"])
    assert caught.value.reason == "ENCODER_UNAVAILABLE"


async def test_what_passes_is_tried_again(peer: Peer, started: Started):
    encoder = await started(timeout_seconds=0.3)
    peer.script += [failed(429, headers={"Retry-After": "0.1"}), Reply(seconds=2.0), Reply(raw=b"<html>")]
    np.testing.assert_allclose((await encoder.encode(["a b"]))[0], expected("a b"), rtol=1e-6)
    assert len(peer.posts) == 4


async def test_a_wrong_key(peer: Peer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_KEY", "sk-wrong")
    peer.key = "sk-right"
    message = await refusal(peer, api_key_env="MY_KEY")
    assert "the enricher's key in MY_KEY is wrong" in message
    assert "sk-wrong" not in message


# Texts that an endpoint refuses


def _up_to(characters: int, wording: str) -> Callable[[Asked], Reply]:
    def answer(asked: Asked) -> Reply:
        longest = max(map(len, asked.body["input"]))
        if longest > characters:
            return failed(400, wording.format(limit=characters, actual=longest))
        return embeddings(asked)

    return answer


@pytest.mark.parametrize(
    ("wording", "least"),
    [
        (
            "This model's maximum context length is {limit} tokens, however you requested {actual} tokens ({actual} in "
            "your prompt; 0 for the completion).",
            85,
        ),
        ("Invalid 'input[0]': maximum input length is {limit} tokens.", 50),
    ],
    ids=["both-numbers", "limit-alone"],
)
async def test_a_text_that_is_too_long_is_cut_until_it_fits(peer: Peer, started: Started, wording: str, least: int):
    peer.answer = _up_to(100, wording)
    encoder = await started()
    long = "twelve chars " * 40
    vectors_ND = await encoder.encode([long, "short", "shorter"])
    sent = [text for asked in peer.posts for text in asked.body["input"] if len(text) <= 100]
    cut = next(text for text in sent if text not in ("short", "shorter"))
    assert long.startswith(cut)
    assert least <= len(cut) <= 100
    assert cut.endswith(("twelve", "chars"))
    np.testing.assert_allclose(vectors_ND, [expected(cut), expected("short"), expected("shorter")], rtol=1e-6)


async def test_one_text_that_is_refused_has_no_vector(peer: Peer, started: Started, caplog: pytest.LogCaptureFixture):
    def answer(asked: Asked) -> Reply:
        if any("poison" in text for text in asked.body["input"]):
            return failed(400, "the text 'poison' is not welcome")
        return embeddings(asked)

    peer.answer = answer
    encoder = await started()
    texts = ["one", "two 2", "poison", "three 33", "four 444 4"]
    with caplog.at_level(logging.INFO):
        vectors_ND = await encoder.encode(texts)
    assert np.isnan(vectors_ND).all(axis=1).tolist() == [False, False, True, False, False]
    assert "a text of 6 characters has no vector: the endpoint answers 400" in caplog.text
    assert "poison" not in caplog.text


async def test_a_vector_of_zeros_is_none(peer: Peer, started: Started):
    encoder = await started()
    peer.answer = lambda _: Reply({"data": [{"index": 0, "embedding": [0.0] * DIM}]})
    assert np.isnan(await encoder.encode(["a"])).all()


async def test_a_job_encodes_at_an_endpoint(peer: Peer, world: World, started: Started):
    world.fill(20)
    world.encoder = await started(batch_size=4)
    flags = settings(peer, batch_size=4)
    world.config = world.config.model_copy(
        update={"enrichment": world.config.enrichment.model_copy(update={"encoder": flags})}
    )
    job = await world.run()
    assert job.state == "SUCCEEDED", job.problem
    assert counts(job, "encoded") == {"original": 20, "text": 20, "image": 7, "hybrid": 7}
    stored = world.vectors("original", ["item-0001"])
    assert abs(np.linalg.norm(stored) - 1) < 1e-5
    assert job.encoder == "openai:some-embedder"
