"""Whole jobs whose descriptions an endpoint writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from dmesr_server.control import JobRow
from dmesr_server.enrichment import describers, openai_endpoint
from dmesr_server.enrichment.specs import JobSpec
from enriching import World, counts, make_world, picture
from openai_peer import Asked, Peer, Reply, chat, failed, talkative

Made = Callable[..., World]


@pytest.fixture
async def peer(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Peer]:
    monkeypatch.setattr(openai_endpoint, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    made = Peer()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def make(peer: Peer, tiny_encoder: Path, tmp_path: Path) -> AsyncIterator[Made]:
    """Makes a world whose describer is the endpoint: `make(openai={"concurrency": 2})`."""
    made: list[World] = []

    def build(*, openai: dict[str, Any] | None = None, **mllm: Any) -> World:
        folder = tmp_path / "store" if not made else tmp_path / f"store-{len(made)}"
        flags = {
            "enrichment.describer": "openai",
            "enrichment.openai": {"base_url": peer.url, "max_retries": 2, **(openai or {})},
            "enrichment.mllm": {"model": "some-vl", "restart_seconds": 0.05, **mllm},
        }
        made.append(make_world(folder, tiny_encoder, **flags))
        return made[-1]

    yield build
    for world in made:
        if world.encoder is not None:
            await world.encoder.stop()
        world.heart.shutdown()
        world.control.close()
        world.store.close()


def fill(world: World, count: int, *, pictures: bool = False) -> None:
    for number in range(count):
        data = picture((number * 37 % 256, 90, 120), size=(64, 96)) if pictures else None
        world.put(f"film-{number}", title=f"Film number {number}", data=data)


async def run(world: World, **spec: Any) -> JobRow:
    """Queues a job and runs it with a describer of its own, as an enricher does that starts for it."""
    job = world.start(JobSpec(**spec))
    describer = describers.create("openai", world.config.enrichment)
    await world.claimed(describer=describer).run()
    await describer.stop()
    return world.control.jobs.get(job.job_id)


async def test_every_route_with_its_account(peer: Peer, make: Made):
    world = make(hybrid_mode="single")
    peer.models = Reply({"data": [{"id": "some-vl", "owned_by": "vllm", "max_model_len": 8192}]})
    peer.version = Reply({"version": "0.32.0"})
    fill(world, 3, pictures=True)
    routes = ("text", "image", "hybrid", "reflect")
    job = await run(world, routes=routes)
    assert job.state == "SUCCEEDED", job.problem
    assert counts(job, "described") == {"original": 0, "text": 3, "image": 3, "hybrid": 3, "reflect": 3}
    rows = world.rows("film-1")
    row = rows["film-1", "hybrid"]
    assert row.text is not None
    assert row.text.startswith("A quiet film about a lighthouse")
    assert row.provenance["engine"] == f"vllm 0.32.0 at 127.0.0.1:{peer.port}"
    assert row.provenance["model"] == "some-vl"
    assert row.provenance["is_mllm"] is True
    assert row.provenance["tokens_in"] > rows["film-1", "text"].provenance["tokens_in"] > 0
    assert row.provenance["tokens_out"] == len(row.text.split())
    # Once more asks nothing.
    asked = len(peer.posts)
    assert (await run(world, routes=routes)).state == "SUCCEEDED"
    assert len(peer.posts) == asked


async def test_a_wrong_key_fails_the_job_before_it_describes_anything(
    peer: Peer, make: Made, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    peer.key = "sk-right"
    world = make()
    fill(world, 3)
    job = await run(world)
    assert job.state == "FAILED"
    assert job.problem["reason"] == "DESCRIBER_UNAVAILABLE"
    assert "the enricher's key in OPENAI_API_KEY is wrong" in job.problem["message"]
    assert "sk-wrong" not in str(job.problem)
    assert world.rows("film-0", "film-1", "film-2") == {}
    assert peer.posts == []


def _blind(asked: Asked) -> Reply:
    if asked.pictures:
        return failed(400, "some-vl is not a multimodal model", type="BadRequestError")
    return talkative(asked)


def _dropping(asked: Asked) -> Reply:
    said = len(asked.words.split())
    return chat(f"A film of {said} words that nobody has looked at.", prompt_tokens=said, completion_tokens=9)


@pytest.mark.parametrize(("answer", "message"), [(_blind, "not a multimodal model"), (_dropping, "drops pictures")])
async def test_an_endpoint_without_vision_fails_the_job_before_it_sees_a_picture_of_ours(
    peer: Peer, make: Made, answer: Callable[[Asked], Reply], message: str
):
    world = make()
    peer.answer = answer
    fill(world, 3, pictures=True)
    job = await run(world, routes=("image", "hybrid"))
    assert job.state == "FAILED"
    assert job.problem["reason"] == "DESCRIBER_UNAVAILABLE"
    assert message in job.problem["message"]
    assert world.rows("film-0", "film-1", "film-2") == {}
    assert len([asked for asked in peer.posts if asked.pictures]) == 1  # the specimen's


async def test_a_budget_stops_the_job_and_a_larger_one_goes_on(peer: Peer, make: Made):
    world = make(openai={"token_budget": 2_500, "concurrency": 2}, max_tokens=64)
    fill(world, 40)
    job = await run(world, routes=("text",))
    assert job.state == "FAILED"
    assert job.problem["reason"] == "DESCRIBER_UNAVAILABLE"
    metadata = job.problem["metadata"]
    assert "enrichment.openai.token_budget" in job.problem["message"]
    assert 1_500 < int(metadata["spent"]) <= int(metadata["budget"]) == 2_500
    item_ids = [f"film-{number}" for number in range(40)]
    described = len(world.rows(*item_ids))
    assert 0 < described < 40
    # Spent is spent, also for the next job of this process.
    asked = len(peer.posts)
    again = await run(world, routes=("text",))
    assert again.state == "FAILED"
    assert len(peer.posts) <= asked + 3
    world.config = world.config.model_copy(
        update={
            "enrichment": world.config.enrichment.model_copy(
                update={"openai": world.config.enrichment.openai.model_copy(update={"token_budget": 0})}
            )
        }
    )
    job = await run(world, routes=("text",))
    assert job.state == "SUCCEEDED", job.problem
    rows = world.rows(*item_ids)
    assert len(rows) == 40
    assert all(row.text for row in rows.values())
    assert counts(job, "described")["text"] < 40


async def test_an_endpoint_that_goes_away_and_comes_back(peer: Peer, make: Made):
    """Open descriptions fail with a reason, the rest is described after the restart; a retry describes the failed."""
    world = make(openai={"concurrency": 2}, concurrency=2, restarts=50)
    fill(world, 12)
    gone = asyncio.Event()

    def answer(asked: Asked) -> Reply:
        if len(peer.posts) == 8 and not gone.is_set():
            gone.set()
        return Reply(talkative(asked).body, seconds=0.02)

    peer.answer = answer

    async def away() -> None:
        await gone.wait()
        await peer.stop()
        await asyncio.sleep(0.5)
        await peer.start()

    outage = asyncio.create_task(away())
    job = await run(world, routes=("text",))
    await outage
    assert job.state == "SUCCEEDED", job.problem
    failures = [row for row in world.rows(*(f"film-{number}" for number in range(12))).values() if row.text is None]
    assert 1 <= len(failures) <= 4
    assert {row.failure_reason for row in failures} == {"DESCRIBER_UNAVAILABLE"}
    assert any("cannot be reached" in (row.failure_message or "") for row in failures)
    job = await run(world, routes=("text",), retry_failed=True)
    assert counts(job, "described", "failed")["text"] == (len(failures), 0)


async def test_one_item_that_the_endpoint_refuses_fails_alone(peer: Peer, make: Made):
    def answer(asked: Asked) -> Reply:
        return failed(400, "flagged by moderation") if "number 2" in asked.words else talkative(asked)

    world = make()
    peer.answer = answer
    fill(world, 5)
    job = await run(world, routes=("text",))
    assert job.state == "SUCCEEDED", job.problem
    assert counts(job, "described", "failed")["text"] == (4, 1)
    row = world.rows("film-2")["film-2", "text"]
    assert row.failure_reason == "DESCRIPTION_UNUSABLE"
    assert "answers 400 (flagged by moderation)" in (row.failure_message or "")
