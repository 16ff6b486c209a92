"""Read-only replicas: they answer, follow the writing server, and leave no trace in the store."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dmesr
import grpc
import pytest
import tiny_artefact
from dmesr.v1 import (
    admin_pb2,
    embeddings_pb2,
    enrichment_pb2,
    errors_pb2,
    items_pb2,
    models_pb2,
    recommendations_pb2,
)
from dmesr_server.api.read_only import READING
from google.protobuf import message_factory
from published import LEARNED, fill, promote, publish, write_source
from running_server import RunningServer
from wire import Stubs, failure_of

METHODS = {
    f"{service.name}/{method.name}": method
    for file in (admin_pb2, embeddings_pb2, enrichment_pb2, items_pb2, models_pb2, recommendations_pb2, errors_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
_READ = ("Check", "Get", "List", "Read", "Find", "Watch", "Estimate", "Preview", "Recommend", "BatchRecommend")


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path_factory.mktemp("writer"), enricher=False).start()
    with grpc.insecure_channel(server.address) as channel:
        stubs = Stubs.of(channel)
        folder = tmp_path_factory.mktemp("models")
        recipe_id = fill(stubs, "")
        publish(stubs, "", tiny_artefact.write(folder / "v1", recipe_id=recipe_id, items=LEARNED))
        publish(stubs, "", tiny_artefact.write(folder / "v2", recipe_id=recipe_id, items={"a": (1, [0.0] * 5)}))
        promote(stubs, "", "tiny:1")
    yield server
    server.stop()


@pytest.fixture
def replica(writer: RunningServer, tmp_path: Path) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path / "replica", server__read_only=True)
    server.store.symlink_to(writer.store)
    yield server
    server.stop()


def recommended(address: str) -> list[str]:
    with grpc.insecure_channel(address) as channel:
        request = recommendations_pb2.RecommendRequest(history=recommendations_pb2.History(item_ids=["a"]))
        answer = Stubs.of(channel).recommendations.Recommend(request)
    return [answer.model, *(found.item_id for found in answer.list.recommendations)]


def soon(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def state(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file and folder, with its time of change and its content."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in [folder, *folder.rglob("*")]
    }


def call(address: str, name: str) -> object:
    method = METHODS[name]
    request = message_factory.GetMessageClass(method.input_type)()
    response = message_factory.GetMessageClass(method.output_type)
    with grpc.insecure_channel(address) as channel:
        kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
        make = getattr(channel, kind)(
            f"/dmesr.v1.{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        answer = make(iter([request]) if method.client_streaming else request)
        return list(answer) if method.server_streaming else answer


def test_a_replica_answers_and_leaves_no_trace(writer: RunningServer, replica: RunningServer):
    expected = recommended(writer.address)
    writer.stop()
    folders = [path for path in (writer.store, *writer.store.rglob("*")) if path.is_dir()]
    try:
        for folder in folders:
            folder.chmod(0o555)
        before = state(writer.store)
        replica.start()
        assert recommended(replica.address) == expected
        with dmesr.connect(replica.address) as client:
            info = client.admin.server_info()
            assert (info.read_only, info.live_enrichers) == (True, 0)
            assert client.items.get("a").attributes["year"] == ["2001"]
            assert client.embeddings.read(recipe="ours", sources=["text"]).ids
            assert client.embeddings.neighbours(item_id="a", recipe="ours", source="text", k=2)
            assert client.admin.store_stats().tables
            with pytest.raises(dmesr.ReadOnly, match="send writes to the server that it follows"):
                client.items.upsert([dmesr.Item("x", {"title": "X"})])
            with pytest.raises(dmesr.ReadOnly):
                client.embeddings.pin("ours")
        for name in METHODS:
            if name not in READING:
                failure = failure_of(lambda name=name: call(replica.address, name))
                assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "READ_ONLY"), name
        replica.stop()
        assert state(writer.store) == before
    finally:
        for folder in folders:
            folder.chmod(0o755)
        writer.start()


def test_calls_are_told_apart_by_what_they_do():
    assert {name for name in METHODS if name.partition("/")[2].startswith(_READ)} == READING


def test_a_replica_follows_the_writing_server(writer: RunningServer, replica: RunningServer):
    replica.start()
    with grpc.insecure_channel(writer.address) as channel:
        stubs = Stubs.of(channel)
        promote(stubs, "", "tiny:2")
        soon(lambda: recommended(replica.address)[0] == "tiny:2")
        promote(stubs, "", "tiny:1")
        soon(lambda: recommended(replica.address)[0] == "tiny:1")
        assert "bare" not in recommended(replica.address)
        write_source(stubs, "", "text", {"bare": [9, 9, 9]})
        soon(lambda: "bare" in recommended(replica.address))
        stubs.admin.CreateCatalog(admin_pb2.CreateCatalogRequest(name="late"))
    with dmesr.connect(replica.address, catalog="late") as client:
        assert list(client.items.list()) == []


def test_a_replica_of_a_store_that_is_no_folder(tmp_path: Path):
    elsewhere: dict[str, str] = {
        "store__control_url": f"sqlite:///{tmp_path / 'control.sqlite'}",
        "serving__artefacts": str(tmp_path / "artefacts"),
    }
    writer = RunningServer(tmp_path / "writer", enricher=False, **elsewhere)
    replica = RunningServer(tmp_path / "replica", server__read_only=True, **elsewhere)
    for server in (writer, replica):
        server.store = f"file://{tmp_path / 'objects'}"  # type: ignore[assignment]  # a URI, as of a bucket
    try:
        writer.start()
        replica.start()
        with grpc.insecure_channel(writer.address) as channel:
            stubs = Stubs.of(channel)
            recipe_id = fill(stubs, "")
            publish(stubs, "", tiny_artefact.write(tmp_path / "v1", recipe_id=recipe_id, items=LEARNED))
            promote(stubs, "", "tiny:1")
        expected = recommended(writer.address)

        def follows() -> bool:
            try:
                return recommended(replica.address) == expected
            except grpc.RpcError:  # the alias is not known yet
                return False

        soon(follows)
        with dmesr.connect(replica.address) as client, pytest.raises(dmesr.ReadOnly):
            client.items.delete(["a"])
    finally:
        replica.stop()
        writer.stop()


def test_a_replica_of_nothing_says_so(tmp_path: Path):
    flags = ["serve", "--read-only", "--port", "0", "--store", str(tmp_path / "store")]
    ran = subprocess.run([sys.executable, "-m", "dmesr_server", *flags], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1
    (line,) = ran.stderr.strip().splitlines()
    assert "start the writing server first" in line
    assert not (tmp_path / "store").exists()
