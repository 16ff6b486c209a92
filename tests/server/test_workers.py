"""Several workers at one port: one store, one enricher, one matrix in memory, and nobody is told late."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dmesr
import grpc
import numpy as np
import psutil
import pytest
import tiny_artefact
from dmesr.v1 import admin_pb2, items_pb2, models_pb2
from dmesr.v1 import recommendations_pb2 as pb
from published import LEARNED, fill, promote, publish, write_source
from running_server import RunningServer
from wire import Stubs

INFO = admin_pb2.GetServerInfoRequest()


class Workers:
    """A channel to each worker: new connections are made until the kernel has dealt one out to each."""

    def __init__(self, address: str):
        self._address = address
        self._channels: list[grpc.Channel] = []

    def connect(self, workers: int = 2) -> list[Stubs]:
        found: dict[int, Stubs] = {}
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:  # a worker may only just be starting
            options = [("grpc.use_local_subchannel_pool", 1)]
            self._channels.append(grpc.insecure_channel(self._address, options=options))
            stubs = Stubs.of(self._channels[-1])
            info = stubs.admin.GetServerInfo(INFO)
            assert info.workers == workers
            found.setdefault(info.worker, stubs)
            if len(found) == workers:
                return [found[number] for number in range(workers)]
        raise AssertionError(f"only {sorted(found)} of {workers} workers ever answered")

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path_factory.mktemp("workers"), enricher=False, server__workers=2)
    yield server.start()
    server.stop()


@pytest.fixture
def workers(served: RunningServer) -> Iterator[list[Stubs]]:
    connections = Workers(served.address)
    yield connections.connect()
    connections.close()


@pytest.fixture
def catalog(workers: list[Stubs]) -> str:
    name = f"c-{next(_NUMBERS)}"
    workers[0].admin.CreateCatalog(admin_pb2.CreateCatalogRequest(name=name))
    return name


_NUMBERS = itertools.count()


def recommended(stubs: Stubs, catalog: str, seen: str = "a") -> list[str]:
    answer = stubs.recommendations.Recommend(
        pb.RecommendRequest(catalog=catalog, history=pb.History(item_ids=[seen]), settings=pb.RecommendSettings(k=50))
    )
    return [answer.model, *(found.item_id for found in answer.list.recommendations)]


def soon(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.01)


def test_every_worker_sees_a_promote_a_split_and_new_vectors(workers: list[Stubs], catalog: str, tmp_path: Path):
    first, second = workers
    recipe_id = fill(first, catalog)
    publish(second, catalog, tiny_artefact.write(tmp_path / "v1", recipe_id=recipe_id, items=LEARNED))
    promote(first, catalog, "tiny:1")
    soon(lambda: all(recommended(one, catalog)[0] == "tiny:1" for one in workers))

    other = {"a": (1, [0.0, 0, 0, 0, 0])}
    publish(first, catalog, tiny_artefact.write(tmp_path / "v2", recipe_id=recipe_id, items=other))
    promote(second, catalog, "tiny:2")
    soon(lambda: all(recommended(one, catalog)[0] == "tiny:2" for one in workers))

    promote(first, catalog, "tiny:1", alias="challenger")
    second.models.SplitTraffic(models_pb2.SplitTrafficRequest(catalog=catalog, other_alias="challenger", share=1))
    soon(lambda: all(recommended(one, catalog)[0] == "tiny:1" for one in workers))

    write_source(second, catalog, "text", {"bare": [9, 9, 9]})
    soon(lambda: all("bare" in recommended(one, catalog) for one in workers))
    second.items.DeleteItems(items_pb2.DeleteItemsRequest(catalog=catalog, item_ids=["bare"]))
    assert "bare" not in recommended(second, catalog)
    soon(lambda: "bare" not in recommended(first, catalog))


def test_one_enricher_beside_all_and_calls_under_way_end_before_a_stop(tmp_path: Path):
    server = RunningServer(tmp_path, server__workers=2).start()
    connections = Workers(server.address)
    try:
        stubs = connections.connect()
        pids = [*server.worker_pids, server.enricher_pid]
        assert len(pids) == 3
        children = psutil.Process(server.api_pid).children()
        assert {child.pid for child in children} == set(pids), "one enricher, and it is the parent's"
        # A stream that is open, on each worker, ends with an answer although the stop comes in between.
        going: threading.Event = threading.Event()

        def batches(name: str) -> Iterator[items_pb2.UpsertItemsRequest]:
            yield items_pb2.UpsertItemsRequest(items=[items_pb2.Item(item_id=f"{name}-1")])
            going.wait(20)
            yield items_pb2.UpsertItemsRequest(items=[items_pb2.Item(item_id=f"{name}-2")])

        with ThreadPoolExecutor(2) as threads:
            calls = [one.items.UpsertItems(batches(str(number))) for number, one in enumerate(stubs)]
            for call in calls:
                next(call)
            stopping = threads.submit(server.stop)
            time.sleep(0.3)
            going.set()
            assert [len(list(call)) for call in calls] == [1, 1]
            assert stopping.result() == 0
        assert not any(psutil.pid_exists(pid) for pid in pids)
    finally:
        connections.close()
        server.stop()


def test_a_dead_worker_is_replaced_and_the_others_answer_meanwhile(tmp_path: Path):
    server = RunningServer(tmp_path, enricher=False, server__workers=2).start()
    try:
        with dmesr.connect(server.address, channels=8) as client:
            before = server.worker_pids
            assert {client.admin.server_info().worker for _ in range(8)} <= {0, 1}
            os.kill(before[0], signal.SIGKILL)
            for _ in range(16):
                client.admin.server_info()
            client.items.upsert([dmesr.Item("a", {"title": "A"})])
            soon(lambda: len(server.worker_pids) == 2 and server.worker_pids[0] != before[0], seconds=30)
            assert server.worker_pids[1] == before[1]
        connections = Workers(server.address)
        listed = connections.connect()[0].items.ListItems(items_pb2.ListItemsRequest())
        assert [found.item_id for found in listed.items] == ["a"]
        connections.close()
        children = server.worker_pids
    finally:
        server.kill()
    assert not any(psutil.pid_exists(pid) for pid in children)


def test_a_pool_of_channels_spreads_over_the_workers(served: RunningServer):
    with dmesr.connect(served.address, channels=16) as client:
        assert {client.admin.server_info().worker for _ in range(16)} == {0, 1}


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # a newer one has taken it away
        return 0


def test_one_matrix_is_in_memory_however_many_workers_serve_it(
    served: RunningServer, workers: list[Stubs], catalog: str, tmp_path: Path
):
    items, dim = 3_000, 3
    ids = [f"i{number:05d}" for number in range(items)]
    requests = [
        items_pb2.UpsertItemsRequest(
            catalog=catalog, items=[items_pb2.Item(item_id=item_id) for item_id in ids[start : start + 1_000]]
        )
        for start in range(0, items, 1_000)
    ]
    list(workers[0].items.UpsertItems(iter(requests)))
    numbers = np.random.default_rng(3).normal(size=(items, dim)).astype(np.float32)
    recipe_id = write_source(workers[0], catalog, "text", dict(zip(ids, numbers.tolist(), strict=True)))
    publish(workers[0], catalog, tiny_artefact.write(tmp_path / "v1", recipe_id=recipe_id, items={}, sources=["text"]))
    promote(workers[0], catalog, "tiny:1")
    for one in workers:
        soon(lambda one=one: len(recommended(one, catalog, ids[0])) == 51)
    matrix = items * tiny_artefact.V * 4
    for pid in served.worker_pids:
        mapped = [one for one in psutil.Process(pid).memory_maps(grouped=False) if one.path.endswith("vectors.npy")]
        mapped = [one for one in mapped if one.size > matrix / 2]
        assert mapped, "the matrix is not mapped from a file"
        (one,) = mapped
        # Every page of it is in this process and in the other, and none is its own.
        assert one.rss >= matrix
        assert one.pss <= 0.6 * one.rss
        assert (one.private_clean, one.private_dirty, one.anonymous) == (0, 0, 0)
    # One file for the version that is served, none for those before it.
    folder = served.store / "run" / "indexes"

    def files() -> list[Path]:
        return [path for path in folder.glob("[!.]*/vectors.npy") if _size(path) > matrix]

    before = files()
    write_source(workers[1], catalog, "text", {ids[0]: [1, 2, 3]})
    soon(lambda: files() != before and len(files()) == 1)


def test_workers_where_processes_cannot_share_a_port(tmp_path: Path):
    code = "import socket; del socket.SO_REUSEPORT; from dmesr_server.cli import app; app()"
    flags = ["serve", "--workers", "2", "--no-enricher", "--port", "0", "--store", str(tmp_path / "store")]
    ran = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1
    (line,) = ran.stderr.strip().splitlines()
    assert line.startswith("error: --workers 2: processes cannot share a port on this platform (no SO_REUSEPORT)")


def test_workers_that_cannot_start_say_so_once(tmp_path: Path):
    (tmp_path / "store").write_text("no folder")
    flags = ["serve", "--workers", "3", "--no-enricher", "--port", "0", "--store", str(tmp_path / "store")]
    ran = subprocess.run([sys.executable, "-m", "dmesr_server", *flags], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1
    assert [line.startswith("error: ") for line in ran.stderr.strip().splitlines()].count(True) == 1
