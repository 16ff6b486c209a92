"""Eight processes write the same rows, four read what they have pinned, a job runs: as if one after another."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import crowd
import dmesr
import numpy as np
import pytest
from running_server import RunningServer


@pytest.fixture
def server(tmp_path: Path, control_url: str) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path / "server", store__control_url=control_url, store__housekeeping_seconds=1)
    yield running.start()
    running.stop()


def _started(role: str, server: RunningServer, catalog: str, last: object) -> subprocess.Popen[str]:
    command = [sys.executable, crowd.__file__, role, server.address, catalog, str(last)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _all_ended(processes: Sequence[subprocess.Popen[str]]) -> list[str]:
    """What each of them has printed, once all have ended well."""
    told = [process.communicate(timeout=400) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), [error for _, error in told if error]
    return [out for out, _ in told]


def _items(client: dmesr.Client) -> dict[str, object]:
    return {item.item_id: item.attributes for item in client.items.list() if item.item_id != "contested"}


def test_a_crowd_leaves_what_one_after_another_would_have_left(server: RunningServer, tmp_path: Path):
    with dmesr.connect(server.address) as admin:
        for name in ("crowd", "serial"):
            admin.admin.create_catalog(name)
        together, serial = admin.catalog("crowd"), admin.catalog("serial")
        for number in range(crowd.WRITERS):
            crowd.write(server.address, "serial", number)

        ended = tmp_path / "ended"
        # There must be something to pin.
        together.items.upsert([dmesr.Item(one, {"title": f"Title of {one}"}) for one in crowd.SHARED])
        first = np.zeros((len(crowd.SHARED), crowd.WIDTH), np.float32)
        together.embeddings.write(
            source="s0", item_ids=crowd.SHARED, vectors=first, recipe=crowd.RECIPE, create_recipe=True
        )
        job = together.enrichment.start()
        readers = [_started("read", server, "crowd", ended) for _ in range(crowd.READERS)]
        writers = [_started("write", server, "crowd", number) for number in range(crowd.WRITERS)]
        try:
            _all_ended(writers)
        finally:
            ended.touch()
            reads = _all_ended(readers)
        assert all(int(each) >= 3 for each in reads)
        assert job.wait().state == "SUCCEEDED"

        assert _items(together) == _items(serial)
        (title,) = together.items.get("contested").attributes["title"]
        assert title in {f"by {number} in {crowd.ROUNDS - 1}" for number in range(crowd.WRITERS)}
        mine, theirs = (client.embeddings.read(recipe=crowd.RECIPE) for client in (together, serial))
        assert mine.ids == theirs.ids
        assert sorted(mine.sources) == sorted(theirs.sources) == [f"s{number}" for number in range(crowd.WRITERS)]
        for source in mine.sources:
            np.testing.assert_array_equal(mine.matrix(source), theirs.matrix(source))

        for client in (together, serial):
            client.items.delete(["contested"])
            assert client.enrichment.start().wait().state == "SUCCEEDED"
        mine, theirs = (client.embeddings.read(recipe="default") for client in (together, serial))
        assert mine.ids == theirs.ids
        for source in theirs.sources:
            np.testing.assert_allclose(mine.matrix(source), theirs.matrix(source), atol=1e-5)
        texts = [
            [(one.item_id, one.route, one.text) for one in client.enrichment.list_descriptions()]
            for client in (together, serial)
        ]
        assert sorted(texts[0], key=str) == sorted(texts[1], key=str)
        assert admin.admin.check_store().findings == ()
    assert "Traceback" not in server.log
