"""The enricher as a process: it takes jobs, survives nothing and loses nothing."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dmesr_server.control import JobRow, JobState
from dmesr_server.enrichment.specs import JobSpec
from dmesr_server.store import ItemWrite
from enriching import World, counts

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(world: World, tmp_path: Path) -> Iterator[Start]:
    """Starts enrichers of the world's store; all are gone after the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def begin(*flags: str, pass_fds: tuple[int, ...] = (), **settings) -> subprocess.Popen[bytes]:
        enrichment = world.config.enrichment.model_copy(update={"poll_seconds": 0.05, "lease_seconds": 1.0, **settings})
        configuration = {"store": {"uri": world.config.store.uri}, "enrichment": enrichment.model_dump(mode="json")}
        log = (tmp_path / f"enricher-{len(processes)}.log").open("wb")
        command = [sys.executable, "-m", "dmesr_server.enricher", "--config-json", json.dumps(configuration), *flags]
        process = subprocess.Popen(command, stdout=log, stderr=log, pass_fds=pass_fds)
        log.close()
        processes.append(process)
        return process

    yield begin
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def wait_for(world: World, job: JobRow, settled: Callable[[JobRow], bool], seconds: float = 90) -> JobRow:
    deadline = time.monotonic() + seconds
    while not settled(found := world.control.jobs.get(job.job_id)):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def put_to_sleep(process: subprocess.Popen[bytes], world: World) -> None:
    """Stops it, but not in the middle of a transaction: SQLite has one writer, and would have none from then on."""
    file = world.config.store.resolved_control_url.removeprefix("sqlite:///")
    deadline = time.monotonic() + 30
    while True:
        process.send_signal(signal.SIGSTOP)
        with contextlib.closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                assert time.monotonic() < deadline
            else:
                return
        process.send_signal(signal.SIGCONT)
        time.sleep(0.002)


def log(tmp_path: Path, number: int = 0) -> str:
    return (tmp_path / f"enricher-{number}.log").read_text()


def test_job_of_a_killed_enricher_ends_with_one_row_each(world: World, start: Start, tmp_path: Path):
    world.fill(400)
    job = world.start()
    first = start()
    wait_for(world, job, lambda found: world.catalog.descriptions.count(_recipe(world, "text"))[0] > 0)
    first.kill()
    first.wait()
    described = world.catalog.descriptions.count(_recipe(world, "text"))[0]
    start()
    ended = wait_for(world, job, lambda found: found.state.ended)
    assert ended.state is JobState.SUCCEEDED
    assert ended.attempts == 2, "the first enricher was killed too late to tell anything"
    assert 0 < described < 400
    for route, expected in {"text": 400, "image": 134, "hybrid": 134}.items():
        assert world.catalog.descriptions.count(_recipe(world, route)) == (expected, 0)
    table = world.catalog.embeddings(job.recipe_id)
    assert table.count() == 400
    assert {source: table.present(source) for source in ("original", "text", "image", "hybrid")} == {
        "original": 400,
        "text": 400,
        "image": 134,
        "hybrid": 134,
    }
    assert counts(ended, "applicable", "described", "reused")["text"] == (400, 400, 0)
    text = log(tmp_path, 1)
    assert "is no multimodal LLM" in text
    assert "Film 1" not in text  # what items say is nobody's business in a log


def test_an_enricher_that_slept_through_its_lease_writes_nothing_over_its_successor(
    world: World, start: Start, tmp_path: Path
):
    world.fill(300)
    job = world.start()
    sleeper = start()
    wait_for(world, job, lambda found: world.catalog.descriptions.count(_recipe(world, "text"))[0] > 0)
    put_to_sleep(sleeper, world)
    ids = [f"item-{number:04}" for number in range(300)]
    # What the sleeper has read of them is stale from here on.
    world.catalog.items.upsert(
        [
            ItemWrite(
                item.item_id, (("title", (f"Renamed {item.item_id}",)), *item.attributes[1:]), item.picture_sha256
            )
            for item in world.catalog.items.get(ids).values()
        ]
    )
    start()
    ended = wait_for(world, job, lambda found: found.state.ended)
    assert (ended.state, ended.attempts) == (JobState.SUCCEEDED, 2)
    expected = _contents(world, job, ids)
    sleeper.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + 60
    while "job was taken away" not in log(tmp_path):
        assert sleeper.poll() is None
        assert time.monotonic() < deadline, log(tmp_path)
        time.sleep(0.02)
    assert _contents(world, job, ids) == expected
    assert world.control.jobs.get(job.job_id) == ended
    another = world.start()  # nobody is at work on the old one, and the sleeper is of use again
    assert wait_for(world, another, lambda found: found.state.ended).state is JobState.SUCCEEDED


def test_terminated_enricher_hands_its_job_back_at_once(world: World, start: Start, tmp_path: Path):
    world.fill(600)
    job = world.start()
    process = start(lease_seconds=60.0)  # nobody could wait for that to run out
    wait_for(world, job, lambda found: found.progress.get("items_total", 0) > 0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    left = world.control.jobs.get(job.job_id)
    assert left.state in (JobState.QUEUED, JobState.SUCCEEDED)
    assert world.control.leases.live("enricher:") == []
    assert "enricher stopped" in log(tmp_path)
    assert world.control.jobs.claim("another", 5) is not None or left.state is JobState.SUCCEEDED


def test_enricher_ends_with_its_parent_and_shows_that_it_lives(world: World, start: Start):
    reading, writing = os.pipe()
    process = start("--parent-fd", str(reading), pass_fds=(reading,))
    os.close(reading)
    deadline = time.monotonic() + 60
    while not world.control.leases.live("enricher:"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.close(writing)
    assert process.wait(30) == 0
    assert world.control.leases.live("enricher:") == []


def test_job_that_cannot_begin_here_fails_with_its_reason(world: World, start: Start):
    world.put("1", title="Heat")
    wanted = world.start(JobSpec(encoder=world.config.enrichment.encoder.model))
    # As if an API process of another version had started it.
    recipe = world.control.recipes.resolve("default", wanted.recipe_id)
    world.control.recipes.save_embedding("default", "0" * 16, recipe.spec, recipe.description_recipes)
    other = world.control.jobs.create("default", wanted.spec, "0" * 16, wanted.describer, wanted.encoder)
    gone = world.control.jobs.create("default", wanted.spec, wanted.recipe_id, "ouija", wanted.encoder)
    start()
    assert wait_for(world, wanted, lambda found: found.state.ended).state is JobState.SUCCEEDED
    failed = wait_for(world, other, lambda found: found.state.ended)
    assert failed.state is JobState.FAILED
    assert failed.problem["reason"] == "DESCRIBER_UNAVAILABLE"
    assert failed.problem["metadata"] == {"expected": "0" * 16, "actual": wanted.recipe_id}
    failed = wait_for(world, gone, lambda found: found.state.ended)
    assert failed.problem["reason"] == "DESCRIBER_UNAVAILABLE"
    assert "ouija" in failed.problem["message"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config-json", "{"], "not valid JSON"),
        (["--config-json", '{"store": {"url": "x"}}'], "store.url"),
        (["--config", "missing.toml"], "missing.toml"),
        (["--log-level", "LOUD"], "log_level"),
    ],
)
def test_bad_configuration_is_named(flags: list[str], said: str):
    answer = subprocess.run(
        [sys.executable, "-m", "dmesr_server.enricher", *flags], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr


def _recipe(world: World, route: str) -> str:
    return world.control.recipes.resolve("default", "default").description_recipes[route]


def _contents(world: World, job: JobRow, ids: list[str]) -> tuple[object, ...]:
    """All that a job wrote: the texts of its descriptions, and of its vectors the hashes of what they encode."""
    texts = {key: (row.input_hash, row.text) for key, row in world.rows(*ids).items()}
    return texts, world.catalog.embeddings(job.recipe_id).hashes(ids)
