"""A job of the enricher's process with the real vLLM: killed, restarted, retried, and nothing left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import START_SECONDS, Configured
from dmesr_server.control import JobRow, JobState
from dmesr_server.enrichment import jobs
from dmesr_server.enrichment.specs import JobSpec
from enriching import World, counts, make_world, write_tiny_encoder

ITEMS = 48
_PROCESSES = "VLLM::"


def test_a_job_outlives_its_engine(tmp_path: Path, configured: Configured) -> None:
    world = make_world(tmp_path / "store", write_tiny_encoder(tmp_path / "encoder"))
    enrichment = configured(
        {
            "mllm.hybrid_mode": "single",
            "mllm.max_tokens": 150,
            # Long noise falls into loops, which the guard refuses; this keeps it from doing so.
            "mllm.temperature": 1.8,
            "mllm.repetition_penalty": 1.3,
            "mllm.attempts": 6,
            "mllm.concurrency": 4,
            "mllm.restart_seconds": 0.2,
            "encoder": world.config.enrichment.encoder.model_dump(),
            "poll_seconds": 0.05,
            "describer": "vllm",
        }
    )
    world.config = world.config.model_copy(update={"enrichment": enrichment})
    world.fill(ITEMS, pictures_every=1)
    job = world.start(JobSpec(routes=("text", "image", "hybrid")))
    configuration = {"store": {"uri": world.config.store.uri}, "enrichment": enrichment.model_dump(mode="json")}
    log = tmp_path / "enricher.log"
    command = [sys.executable, "-m", "dmesr_server.enricher", "--config-json", json.dumps(configuration)]
    with log.open("wb") as output:
        enricher = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        wait_for(world, job, lambda _: described(world) > 8, log)
        first = engines(enricher.pid)
        assert first, "vLLM runs in processes of its own"
        first[0].kill()
        ended = wait_for(world, job, lambda found: found.state.ended, log)
        assert ended.state is JobState.SUCCEEDED, log.read_text()[-3000:]
        assert ended.attempts == 1
        made, failed = counts(ended, "described"), counts(ended, "failed")
        for route in ("text", "image", "hybrid"):
            assert made[route] + failed[route] == ITEMS
        assert 1 <= sum(failed.values()) <= 4 * 3, "what was open fails, the rest is described after the restart"
        check_provenance(world)

        again = jobs.retry_job(
            control=world.control, store=world.store, config=world.config, job_id=job.job_id, request_id=None
        )
        ended = wait_for(world, again, lambda found: found.state.ended, log)
        assert ended.state is JobState.SUCCEEDED
        assert sum(counts(ended, "failed").values()) == 0
        assert sum(counts(ended, "described").values()) == sum(failed.values())
        assert "died" in log.read_text()

        left = engines(enricher.pid)
        assert left
        enricher.send_signal(signal.SIGKILL)
        enricher.wait()
        _, alive = psutil.wait_procs(left, timeout=30)
        assert not alive, "a killed enricher leaves processes of vLLM behind"
    finally:
        remains = [*psutil.Process(enricher.pid).children(recursive=True)] if enricher.poll() is None else []
        enricher.kill()
        enricher.wait()
        for process in remains:
            process.kill()
        world.heart.shutdown()
        world.control.close()
        world.store.close()


def check_provenance(world: World) -> None:
    rows = world.rows(*(f"item-{number:04}" for number in range(ITEMS)))
    failed = [row for row in rows.values() if row.text is None]
    told = {(row.failure_reason, row.failure_message) for row in failed}
    assert all(reason == "DESCRIBER_UNAVAILABLE" and "died" in (message or "") for reason, message in told), told
    for (_, route), row in rows.items():
        said = row.provenance
        assert said["describer"] == "vllm"
        assert said["is_mllm"]
        assert said["model"].startswith("tiny-qwen2.5-vl@")
        assert said["engine"].startswith("vllm 0.")
        assert bool(said["picture_sha256"]) == (route != "text")
        if row.text is None:
            continue
        assert said["tokens_in"] > said["tokens_cached"] >= 0
        assert said["tokens_out"] > 0
        assert json.loads(said["sampling"])["max_tokens"] == 150
    hybrids = [row for (_, route), row in rows.items() if route == "hybrid" and row.text is not None]
    cached = [row.provenance["tokens_cached"] for row in hybrids]
    assert sum(tokens > 0 for tokens in cached) > 0.9 * len(cached), "the picture was read by the image route"


def described(world: World) -> int:
    recipe = world.control.recipes.resolve("default", "default").description_recipes["text"]
    return world.catalog.descriptions.count(recipe)[0]


def engines(enricher: int) -> list[psutil.Process]:
    """vLLM's processes, the one that leads them first."""
    found = [one for one in psutil.Process(enricher).children(recursive=True) if one.name().startswith(_PROCESSES)]
    return sorted(found, key=lambda one: "Engine" not in one.name())


def wait_for(world: World, job: JobRow, settled: Callable[[JobRow], bool], log: Path) -> JobRow:
    until = time.monotonic() + START_SECONDS
    while not settled(found := world.control.jobs.get(job.job_id)):
        if time.monotonic() > until or (found.state.ended and found.state is JobState.FAILED):
            pytest.fail(f"{found}\n{log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.05)
    return found
