"""A disk that is full, read-only or damaged: callers are told, what can be answered is, and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import dmesr
import grpc
import numpy as np
import pytest
import tiny_artefact
from dmesr.v1 import items_pb2
from published import LEARNED, fill, promote, publish
from running_server import RunningServer
from small_disk import SmallDisk
from wire import Stubs, eventually, failure_of, serving

ITEMS, RECOMMENDATIONS = "dmesr.v1.ItemService", "dmesr.v1.RecommendationService"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    try:
        mounted = SmallDisk(tmp_path / "disk", megabytes=32)
    except OSError as error:
        pytest.skip(str(error))
    yield mounted
    mounted.remove()


@pytest.fixture
def server(disk: SmallDisk, tmp_path: Path) -> Iterator[RunningServer]:
    """A server whose store is on that disk, and its log is not."""
    running = RunningServer(tmp_path / "server", enrichment__lease_seconds=5)
    running.store = disk.folder / "store"
    yield running
    running.kill()


def _publish(server: RunningServer, folder: Path) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stubs = Stubs.of(channel)
        publish(stubs, "", tiny_artefact.write(folder, recipe_id=fill(stubs, ""), items=LEARNED))
        promote(stubs, "", "tiny:1")


def _becomes(server: RunningServer, expected: dict[str, bool]) -> None:
    with grpc.insecure_channel(server.address) as channel:
        eventually(lambda: {name: serving(channel, name) for name in expected} == expected, seconds=60)


def _refusals(calls: dict[str, Callable[[], object]]) -> dict[str, str]:
    """What each call is refused with; "" where it is not."""
    found = {}
    for name, call in calls.items():
        try:
            call()
        except dmesr.DmesrError as error:
            found[name] = type(error).__name__
        else:
            found[name] = ""
    return found


def test_a_full_disk_refuses_writes_and_loses_nothing(server: RunningServer, disk: SmallDisk, tmp_path: Path):
    server.start()
    _publish(server, tmp_path / "v1")
    acknowledged: set[str] = set()
    with dmesr.connect(server.address) as client:
        client.items.upsert([dmesr.Item(f"k{number}", {"title": f"K {number}"}) for number in range(300)])
        expected = list(client.recommend(history=["a"]))
        job = client.enrichment.start()
        disk.fill(leave_bytes=300_000)

        vectors = np.random.default_rng(0).random((100, 64), dtype=np.float32)
        writes: dict[str, Callable[[], object]] = {
            "vectors": lambda: client.embeddings.write(
                source="clip",
                item_ids=[f"k{number}" for number in range(100)],
                vectors=vectors + len(acknowledged),
                recipe="own",
                create_recipe=True,
            ),
            "catalog": lambda: client.admin.create_catalog(f"c{len(acknowledged)}"),
            "promote": lambda: client.models.promote("tiny:1", alias=f"a{len(acknowledged)}"),
            "snapshot": lambda: client.admin.snapshot_store(f"s{len(acknowledged)}"),
            "compact": lambda: client.admin.compact_store(),
            "delete": lambda: client.items.delete(["k299"]),
        }
        seen: set[str] = set()
        for number in range(400):
            ids = [f"n{number}-{one}" for one in range(20)]
            try:
                client.items.upsert([dmesr.Item(one, {"title": "x" * 2_000}) for one in ids])
                acknowledged.update(ids)
            except dmesr.StoreFull:
                refused = _refusals(writes)
                seen |= set(refused.values())
                if "" not in set(refused.values()) - {refused["delete"]}:
                    break
        assert seen <= {"StoreFull", ""}, seen
        assert set(refused.values()) >= {"StoreFull"}

        # What only reads goes on.
        assert client.items.get("k1").attributes == {"title": ["K 1"]}
        assert list(client.recommend(history=["a"])) == expected
        assert {item.item_id for item in client.items.list()} >= acknowledged
        assert client.admin.check_store().sound
        _becomes(server, {"": False, ITEMS: False, RECOMMENDATIONS: True})

    # Also for a server that starts now: its matrix finds no room for its file, and is held in memory.
    server.kill()
    server.start()
    _becomes(server, {"": False, ITEMS: False, RECOMMENDATIONS: True})
    with dmesr.connect(server.address) as client:
        eventually(lambda: _refusals({"": lambda: client.recommend(history=["a"])}) == {"": ""}, seconds=60)
        assert list(client.recommend(history=["a"])) == expected

        disk.empty()
        _becomes(server, {"": True, ITEMS: True, RECOMMENDATIONS: True})
        assert {item.item_id for item in client.items.list()} >= acknowledged
        assert set(_refusals(writes).values()) == {""}
        ended = client.enrichment.get(job.job_id)
        eventually(lambda: client.enrichment.get(job.job_id).status.state in ("SUCCEEDED", "FAILED"), seconds=120)
        if client.enrichment.get(job.job_id).status.state == "FAILED":  # it says why, and is not begun anew
            ended = client.enrichment.retry(job.job_id)
        assert ended.wait().state == "SUCCEEDED"
        assert client.admin.check_store().sound
    assert "Traceback" not in server.log


def test_a_folder_that_may_not_be_written_to_refuses_writes_until_it_may(
    server: RunningServer, disk: SmallDisk, tmp_path: Path
):
    server.start()
    _publish(server, tmp_path / "v1")
    with dmesr.connect(server.address) as client:
        disk.forbid(server.store)
        try:
            with pytest.raises(dmesr.StoreUnavailable, match="let the server write there"):
                client.items.upsert([dmesr.Item("n", {"title": "N"})])
            assert client.items.get("a").item_id == "a"
            assert len(client.recommend(history=["a"])) > 0
            assert client.admin.check_store().sound
            _becomes(server, {"": False, ITEMS: False, RECOMMENDATIONS: True})
        finally:
            disk.allow(server.store)
        _becomes(server, {"": True, ITEMS: True, RECOMMENDATIONS: True})
        assert client.items.upsert([dmesr.Item("n", {"title": "N"})]).inserted == 1

    # A server that starts on a disk that is read-only says so in one line; a replica needs no more.
    server.stop()
    disk.make_read_only()
    command = [sys.executable, "-m", "dmesr_server", "serve", "--store", str(server.store), "--port", "0"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1
    (line,) = ran.stderr.strip().splitlines()
    assert "--read-only" in line
    replica = RunningServer(tmp_path / "replica", enricher=False, server__read_only=True)
    replica.store = server.store
    try:
        with dmesr.connect(replica.start().address) as client:
            assert client.items.get("n").item_id == "n"
            assert client.admin.check_store().sound
        _becomes(replica, {"": True, ITEMS: True, RECOMMENDATIONS: True})
    finally:
        replica.stop()
    assert "Traceback" not in server.log + replica.log


def test_a_file_that_is_cut_short_under_a_running_server_is_told_and_the_rest_goes_on(tmp_path: Path):
    server = RunningServer(tmp_path, enricher=False).start()
    try:
        _publish(server, tmp_path / "v1")
        with grpc.insecure_channel(server.address) as channel, dmesr.connect(server.address) as client:
            stubs = Stubs.of(channel)
            data = next((server.store / "catalogs/default/items.lance/data").iterdir())
            whole = data.read_bytes()
            data.write_bytes(whole[: len(whole) // 2])
            server.restart()  # nothing is remembered of the file
            refused = failure_of(lambda: stubs.items.GetItems(_ids("a")))
            assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
            assert "dmesr-cli store check" in refused.message
            eventually(lambda: _refusals({"": lambda: client.recommend(history=["a"])}) == {"": ""}, seconds=60)
            (found,) = client.admin.check_store().findings
            assert (found.kind, found.place) == ("UNREADABLE_TABLE", "items")
            data.write_bytes(whole)
            server.restart()
            assert client.items.get("a").item_id == "a"
            assert client.admin.check_store().findings == ()
        assert "Traceback" not in server.log
    finally:
        server.stop()


def _ids(*item_ids: str) -> items_pb2.GetItemsRequest:
    return items_pb2.GetItemsRequest(item_ids=item_ids)
