"""The promises that a user of enrichment relies on: nothing twice, nothing lost, only what changed."""

from __future__ import annotations

import io
import itertools
import time

import dmesr
import pytest
from dmesr_trainer.datasets import load
from PIL import Image

ITEMS = 48
MANY_ITEMS = 120  # more than are encoded together


def _some(count: int) -> list[dmesr.Item]:
    """Items of the sample catalogue, some of them without a picture."""
    return list(itertools.islice(load("sample").items(), count))


@pytest.fixture
def items() -> list[dmesr.Item]:
    """As many as most promises need."""
    return _some(ITEMS)


def _described(job: dmesr.Job) -> dict[str, int]:
    return {progress.route: progress.described for progress in job.routes if progress.route != "original"}


def _rows(client: dmesr.Client, table: str) -> int:
    return next(stats.rows for stats in client.admin.store_stats().tables if stats.name == table)


def test_a_second_job_does_no_work(client: dmesr.Client, items: list[dmesr.Item]):
    client.items.upsert(items)
    first = client.enrichment.start().wait()
    with_picture = sum(item.picture is not None for item in items)
    assert 0 < with_picture < ITEMS
    assert _described(first) == {"text": ITEMS, "image": with_picture, "hybrid": with_picture}

    again = client.items.upsert(items)
    assert (again.inserted, again.updated, again.unchanged) == (0, 0, ITEMS)
    second = client.enrichment.start().wait()
    assert _described(second) == {"text": 0, "image": 0, "hybrid": 0}
    assert sum(progress.encoded for progress in second.routes) == 0


def test_a_new_poster_redoes_two_routes_of_one_item(client: dmesr.Client, items: list[dmesr.Item]):
    client.items.upsert(items)
    client.enrichment.start().wait()
    before = client.embeddings.read(recipe="default")
    chosen = next(item for item in items if item.picture is not None)
    poster = io.BytesIO()
    Image.new("RGB", (90, 130), (10, 200, 90)).save(poster, "PNG")
    summary = client.items.upsert([dmesr.Item(chosen.item_id, chosen.attributes, picture=poster.getvalue())])
    assert summary.updated == 1

    job = client.enrichment.start().wait()
    assert _described(job) == {"text": 0, "image": 1, "hybrid": 1}
    after = client.embeddings.read(recipe="default", item_ids=before.ids)
    changed = {
        (item_id, source)
        for source in ("original", "text", "image", "hybrid")
        for item_id, old, new in zip(before.ids, before.matrix(source), after.matrix(source), strict=True)
        if (old != new).any()
    }
    assert changed == {(chosen.item_id, "image"), (chosen.item_id, "hybrid")}


def test_a_job_survives_the_death_of_both_processes(server, client: dmesr.Client):
    items = _some(MANY_ITEMS)
    client.items.upsert(items)
    job = client.enrichment.start()
    deadline = time.monotonic() + 180
    while job.refresh().items_done == 0:
        assert time.monotonic() < deadline, f"the job never began: {job}\n{server.log[-5000:]}"
        time.sleep(0.02)
    server.kill()
    server.restart()

    with dmesr.connect(server.address) as again:
        ended = again.enrichment.get(job.job_id).wait(timeout=120)
        assert ended.state is dmesr.JobState.SUCCEEDED
        with_picture = sum(item.picture is not None for item in items)
        assert _rows(again, "descriptions") == len(items) + 2 * with_picture
        vectors = again.embeddings.read(recipe="default")
        assert sorted(vectors.ids) == sorted(item.item_id for item in items)
        assert vectors.present("text").sum() == len(items)
        assert vectors.present("hybrid").sum() == with_picture
