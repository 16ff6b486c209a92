"""The store under a day of small writes, and its way into a snapshot and back."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dmesr
import grpc
import numpy as np
import pytest
import tiny_artefact
from dmesr.v1 import items_pb2
from dmesr.v1 import recommendations_pb2 as pb
from dmesr_server.store import Store
from dmesr_server.store.tidiness import UNINDEXED_ROWS
from dmesr_server.upkeep import restoring
from dmesr_server.upkeep.restoring import RestoreError
from published import LEARNED, SOURCES, fill, promote, publish, write_source
from running_server import RunningServer
from wire import Stubs


def soon(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def restore(snapshot: Path, store: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dmesr.cli", "--json", "store", "restore", str(snapshot), "--store", str(store)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def table(client: dmesr.Client, name: str) -> dmesr.TableStats:
    return next(one for one in client.admin.store_stats().tables if one.name.startswith(name))


def test_files_stay_few_under_many_small_writes_and_pins_are_honoured(start_server: Callable[..., RunningServer]):
    server = start_server(enricher=False, store__housekeeping_seconds=0.2, store__keep_versions_seconds=1)
    with dmesr.connect(server.address) as client:
        client.items.upsert([dmesr.Item(one, {"title": "T"}) for one in ("a", "b", *(f"v{n}" for n in range(20)))])
        vectors = np.arange(8, dtype=np.float32).reshape(2, 4)
        client.embeddings.write(source="clip", item_ids=["a", "b"], vectors=vectors, recipe="ours", create_recipe=True)
        writes, most = 80, 0
        with client.embeddings.pin("ours") as pin:
            for number in range(writes):
                client.items.upsert([dmesr.Item(f"i{number % 50}", {"title": f"{number}"})])
                client.embeddings.write(
                    source="clip", item_ids=[f"v{number % 20}"], vectors=vectors[:1] + number, recipe="ours"
                )
                most = max(most, table(client, "items").files)
            pinned = client.embeddings.read(recipe="ours", version=pin.version)
            assert pinned.ids == ["a", "b"]
            np.testing.assert_array_equal(pinned.matrix("clip"), vectors)
        # Without house-keeping each write would leave three files at least: rows, a manifest, a transaction.
        assert most < 3 * writes
        for name in ("items", "embeddings"):
            soon(lambda name=name: table(client, name).versions <= 2)
            left = table(client, name)
            assert left.fragments <= 21
            assert left.files <= 100
        assert (table(client, "items").rows, table(client, "embeddings").rows) == (72, 22)
        assert client.items.get("i19").attributes == {"title": ["69"]}


def test_the_index_of_keys_follows_large_writes(start_server: Callable[..., RunningServer]):
    """They are too few pieces for a compaction, and a look-up would read all of their rows."""
    server = start_server(enricher=False, store__housekeeping_seconds=0.2)
    with dmesr.connect(server.address) as client:
        client.items.upsert(dmesr.Item(f"i{number:05}", {"title": "T"}) for number in range(UNINDEXED_ROWS + 1_000))
        tables = {one.name: one for one in Store(uri=str(server.store), read_only=True).catalog("default").tables()}
        soon(lambda: tables["items"].tidiness().unindexed < UNINDEXED_ROWS)
        assert table(client, "items").rows == UNINDEXED_ROWS + 1_000
        assert client.items.get("i05999").attributes == {"title": ["T"]}


def test_compaction_can_be_asked_for(start_server: Callable[..., RunningServer]):
    server = start_server(enricher=False)
    with dmesr.connect(server.address) as client:
        for number in range(5):
            client.items.upsert([dmesr.Item(f"i{number}", {"title": "T"})])
        assert table(client, "items").fragments == 5
        (items,) = client.admin.compact_store()
        assert (items.before.fragments, items.after.fragments, items.after.rows) == (5, 1, 5)
        assert items.after == table(client, "items")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path_factory.mktemp("upkeep"), enricher=False)
    yield server.start()
    server.stop()


def recommended(address: str) -> list[str]:
    with grpc.insecure_channel(address) as channel:
        request = pb.RecommendRequest(history=pb.History(item_ids=["a"]))
        answer = Stubs.of(channel).recommendations.Recommend(request)
    return [answer.model, *(found.item_id for found in answer.list.recommendations)]


def test_a_snapshot_made_while_writes_go_on_is_a_store_again(running: RunningServer, tmp_path: Path):
    with grpc.insecure_channel(running.address) as channel, dmesr.connect(running.address) as client:
        stubs = Stubs.of(channel)
        recipe_id = fill(stubs, "")
        publish(stubs, "", tiny_artefact.write(tmp_path / "v1", recipe_id=recipe_id, items=LEARNED))
        promote(stubs, "", "tiny:1")
        before = recommended(running.address)
        ended = threading.Event()
        written: list[int] = []

        def write() -> None:
            while not ended.is_set():
                number = len(written)
                item = items_pb2.Item(item_id=f"later-{number:04d}")
                list(stubs.items.UpsertItems(iter([items_pb2.UpsertItemsRequest(items=[item])])))
                write_source(stubs, "", "text", {f"later-{number:04d}": [1, 0, 0]})
                written.append(number)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            soon(lambda: len(written) >= 3)
            at_least = len(written)
            made = client.admin.snapshot_store("while-writing")
            at_most = len(written) + 1
        finally:
            ended.set()
            writer.join()
        with pytest.raises(dmesr.SnapshotRefused, match="choose another name"):
            client.admin.snapshot_store("while-writing")
        rows = {one.name: one.rows for one in made.tables}
        assert len(SOURCES) + at_least <= rows["items"] <= len(SOURCES) + at_most

    snapshot = Path(made.folder)
    assert snapshot == running.store.with_name("store-snapshots") / "while-writing"
    ran = restore(snapshot, tmp_path / "again" / "store")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert {(one["catalog"], one["name"], one["rows"], one["digest"]) for one in told["tables"]} == {
        (one.catalog, one.name, one.rows, one.digest) for one in made.tables
    }
    running.stop()  # what is restored needs nothing of the store that it was
    running.store.rename(tmp_path / "gone")
    other = RunningServer(tmp_path / "again", enricher=False).start()
    try:
        soon(lambda: [one for one in recommended(other.address) if not one.startswith("later-")] == before)
        with dmesr.connect(other.address) as client:
            ids = {item.item_id for item in client.items.list()}
            assert len(ids) == rows["items"]
            assert client.admin.check_store().findings == ()  # what is in it fits together
            client.items.upsert([dmesr.Item("one-more", {"title": "T"})])
    finally:
        other.stop()
        (tmp_path / "gone").rename(running.store)
        running.start()


def test_what_cannot_be_restored_is_told_in_one_line(running: RunningServer, tmp_path: Path):
    with dmesr.connect(running.address) as client:
        client.items.upsert([dmesr.Item("a", {"title": "A"})])
        snapshot = Path(client.admin.snapshot_store("damaged").folder)

    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    ran = restore(snapshot, full)
    assert ran.returncode == 1
    (line,) = ran.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert "is not empty" in line

    def told() -> str:
        with pytest.raises(RestoreError) as caught:
            restoring.restore(snapshot=snapshot, store=tmp_path / "new")
        return str(caught.value)

    data = next((snapshot / "store/catalogs/default/items.lance/data").iterdir())
    content = data.read_bytes()
    data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "is damaged" in told()
    data.unlink()
    assert "is not whole" in told()
    (snapshot / "snapshot.json").unlink()
    assert "is no snapshot" in told()
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
