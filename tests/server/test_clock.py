"""A whole server whose system clock is put forward and back: Debian's libfaketime tells its processes another time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import dmesr
import pytest
from published import serve
from running_server import RunningServer

ITEMS = [dmesr.Item(f"i{number:03d}", {"title": f"Film {number}"}) for number in range(200)]


def _library() -> Path | None:
    if named := os.environ.get("DMESR_FAKETIME_LIBRARY"):
        return Path(named)
    return next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


class Clock:
    """The time that the server's processes are told: seconds that it goes before the machine's."""

    def __init__(self, file: Path):
        self.file = file
        self.put(0)

    def put(self, seconds: int) -> None:
        """Puts it so far ahead, or back."""
        ready = self.file.with_suffix(".new")
        ready.write_text(f"{seconds:+d}")
        ready.replace(self.file)
        time.sleep(1.0)


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that servers go by which are started from now on; their monotonic one goes on as it is."""
    library = _library()
    if library is None:
        pytest.skip("there is no libfaketime: apt-get install faketime, or name it in DMESR_FAKETIME_LIBRARY")
    found = Clock(tmp_path / "clock")
    for name, value in {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(found.file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }.items():
        monkeypatch.setenv(name, value)
    return found


def _settled(client: dmesr.Client, job: dmesr.Job, clock: Clock, jumps: list[int]) -> None:
    """Waits for a job; puts the clock whenever a share of the items is done."""
    deadline = time.monotonic() + 180
    places = [len(ITEMS) * (number + 1) // (len(jumps) + 2) for number in range(len(jumps))]
    while (now := job.refresh()).state not in (dmesr.JobState.SUCCEEDED, dmesr.JobState.FAILED):
        assert time.monotonic() < deadline, now
        if jumps and now.items_done >= places[0]:
            clock.put(jumps.pop(0))
            places.pop(0)
        time.sleep(0.02)
    assert now.state is dmesr.JobState.SUCCEEDED, now
    for seconds in jumps:  # the job was quicker
        clock.put(seconds)


def test_a_clock_that_jumps_loses_nothing_and_stops_nothing(
    clock: Clock, start_server: Callable[..., RunningServer], tmp_path: Path
):
    server = start_server(enrichment__lease_seconds=5.0)
    with dmesr.connect(server.address) as client:
        client.items.upsert(ITEMS)
        _settled(client, client.enrichment.start(routes=["text"]), clock, [7_200])
        client.items.upsert(dmesr.Item(item.item_id, {"title": f"New {item.item_id}"}) for item in ITEMS)
        first = client.items.get(ITEMS[0].item_id)
        assert first.update_time is not None
        ahead = first.update_time.timestamp() - time.time()
        assert 7_100 < ahead < 7_300, f"the server does not go by the clock of this test, but {ahead} s ahead"
        _settled(client, client.enrichment.start(routes=["text"]), clock, [-7_200, 86_400])
        assert {item.attributes["title"][0] for item in client.items.list()} == {
            f"New {item.item_id}" for item in ITEMS
        }
        found = client.embeddings.read(recipe="default")
        assert sorted(found.ids) == [item.item_id for item in ITEMS]
        assert found.present("text").all()

        ids = [item.item_id for item in ITEMS]
        clock.put(-86_400)
        serve(client, ids, tmp_path / "tiny")
        assert len(client.recommend(history=ids[:3], k=10)) == 10
        assert client.admin.check_store().sound
    server.kill()
    clock.put(3_600)
    server.restart()
    with dmesr.connect(server.address) as client:
        assert len(client.recommend(history=ids[:3], k=10)) == 10
        assert client.items.upsert([dmesr.Item("last", {"title": "Last"})]).inserted == 1
    assert "Traceback" not in server.log, server.log[-5_000:]
