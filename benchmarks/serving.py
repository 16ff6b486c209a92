"""`python -m benchmarks.serving`: recommendations by a real server beside the same work called in-process.

The tower is a real DMESR's, trained for one epoch on made-up histories and exported by the trainer; the items' vectors
are what its item tower makes of random ones: exact search takes as long whatever they are. Every call has another
history, so nothing is answered from a cache.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dmesr
import grpc
import grpc.aio
import numpy as np
import onnxruntime
import psutil
from dmesr.v1 import recommendations_pb2
from grpc_health.v1 import health_pb2

from benchmarks import rows as figures
from benchmarks.rows import Row, machine

ROOT = Path(__file__).parents[1]
SOURCES = ("original", "text", "image", "hybrid")
SOURCE_DIM = 32  # of the vectors that the item tower reads; it has run before anything is measured
TRAINED_ITEMS = 500
HISTORY = 50
K = 10
CLIENTS = 64
BATCHES = (16, 32, 64, 128, 256)  # of the in-process peer; its best one counts
RECOMMEND = "/dmesr.v1.RecommendationService/Recommend"
CHECK = "/grpc.health.v1.Health/Check"  # the empty call: next to nothing in, next to nothing out

Call = Callable[[], Awaitable[object]]


@contextmanager
def server(folder: Path, *, workers: int = 1) -> Iterator[tuple[str, psutil.Process]]:
    """A server as a user starts it, without an enricher: its address and its process."""
    ready = folder / "ready"
    command = [sys.executable, "-m", "dmesr_server", "serve", "--store", str(folder / "store"), "--port", "0"]
    command += ["--workers", str(workers)]
    with (folder / "server.log").open("wb") as log:
        started = subprocess.Popen(
            [*command, "--no-enricher", "--ready-file", str(ready)], stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        while not ready.exists():
            if started.poll() is not None:
                raise SystemExit((folder / "server.log").read_text())
            time.sleep(0.05)
        yield ready.read_text(), psutil.Process(started.pid)
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(30)


def fill(client: dmesr.Client, *, items: int, folder: Path) -> None:
    """Items, their vectors, a model over them, and production pointing to it."""
    ids = [f"i{number:07d}" for number in range(items)]
    summary = client.items.upsert(dmesr.Item(item_id, {"title": f"Item {item_id}"}) for item_id in ids)
    assert summary.inserted == items, summary
    rng = np.random.default_rng(items)
    for source in SOURCES:
        vectors = rng.standard_normal((items, SOURCE_DIM), np.float32)
        client.embeddings.write(recipe="random", source=source, item_ids=ids, vectors=vectors, create_recipe=True)
    # In a process of its own: torch and its threads are none of what is measured.
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", __spec__.name, "--train", client.target, client.catalog_name, folder],
        check=True,
        cwd=ROOT,
    )
    model = client.models.publish(folder / "artefact", name="dmesr", timeout=3_600)
    client.models.promote(model.ref)


def train(target: str, catalog: str, folder: Path) -> None:
    """Trains a DMESR on the first items of a catalog and exports it."""
    from dmesr_trainer.config import TrainConfig
    from dmesr_trainer.export import export
    from dmesr_trainer.sequences import Sequences
    from dmesr_trainer.sources import fetch
    from dmesr_trainer.training import train as fit

    rng = np.random.default_rng(0)
    histories = [rng.integers(0, TRAINED_ITEMS, HISTORY + 2) for _ in range(64)]
    sequences = Sequences(
        item_ids=tuple(f"i{number:07d}" for number in range(TRAINED_ITEMS)),
        user_ids=tuple(map(str, range(len(histories)))),
        events_E=np.concatenate(histories),
        starts_U1=np.cumsum([0, *map(len, histories)]),
    )
    with dmesr.connect(target, catalog=catalog) as client:
        sources = fetch(client, recipe="random", item_ids=sequences.item_ids)
    config = TrainConfig.preset("dmesr", device="cpu", optimiser__epochs=1, backbone__max_history=HISTORY)
    export(fit(config=config, sequences=sequences, sources=sources, output=folder / "run"), folder / "artefact")


class InProcess:
    """The same work without a server: towers, one matrix product, the best k of what the user has not seen."""

    def __init__(self, artefact: Path, *, ids: Sequence[str], vectors_NV: np.ndarray, tower_threads: int):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = tower_threads
        options.log_severity_level = 3
        tower = artefact / "user_tower.onnx"
        self._tower = onnxruntime.InferenceSession(str(tower), options, providers=["CPUExecutionProvider"])
        self._vectors_NV = np.ascontiguousarray(vectors_NV)
        self.ids = list(ids)
        self._rows = {item_id: row for row, item_id in enumerate(ids)}

    def __call__(self, histories: Sequence[Sequence[str]]) -> list[list[str]]:
        rows_BT = np.array([[self._rows[item_id] for item_id in history] for history in histories])
        feeds = {"vectors": self._vectors_NV[rows_BT], "lengths": np.full(len(rows_BT), rows_BT.shape[1], np.int64)}
        (users_BV,) = self._tower.run(["user"], feeds)
        answers = []
        for scores_N, seen_T in zip(users_BV @ self._vectors_NV.T, rows_BT, strict=True):
            scores_N[seen_T] = -np.inf
            top = np.argpartition(scores_N, -K)[-K:]
            answers.append([self.ids[row] for row in top[np.argsort(-scores_N[top], kind="stable")]])
        return answers


@dataclass(frozen=True)
class Clients:
    """Channels to one server, and calls over them."""

    channels: Sequence[grpc.aio.Channel]
    catalog: str

    def recommend(self, client: int, history: Sequence[str]) -> Awaitable[recommendations_pb2.RecommendResponse]:
        request = recommendations_pb2.RecommendRequest(
            catalog=self.catalog,
            history=recommendations_pb2.History(item_ids=history),
            settings=recommendations_pb2.RecommendSettings(k=K),
        )
        return self.channels[client].unary_unary(
            RECOMMEND,
            request_serializer=recommendations_pb2.RecommendRequest.SerializeToString,
            response_deserializer=recommendations_pb2.RecommendResponse.FromString,
        )(request)

    def empty(self, client: int) -> Awaitable[health_pb2.HealthCheckResponse]:
        return self.channels[client].unary_unary(
            CHECK,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )(health_pb2.HealthCheckRequest())


@contextmanager
def opened(address: str, catalog: str, count: int) -> Iterator[Clients]:
    # Without a pool of their own, channels to one address would share one connection.
    channels = [grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(count)]
    yield Clients(channels, catalog)


async def one_client(
    clients: Clients, peer: InProcess, draw: Callable[[], list[str]], calls: int
) -> dict[str, list[float]]:
    """Seconds of each call; ours, the peer's and the empty one take turns, so that all see the same machine."""
    taken: dict[str, list[float]] = {"ours": [], "in-process": [], "empty": []}
    for number in range(-20, calls):  # the first ones warm up
        history = draw()
        started = time.perf_counter()
        ours = await clients.recommend(0, history)
        first = time.perf_counter()
        await clients.empty(0)
        second = time.perf_counter()
        (expected,) = peer([history])
        third = time.perf_counter()
        assert [found.item_id for found in ours.list.recommendations] == expected, "other items than the peer's"
        if number >= 0:
            taken["ours"].append(first - started)
            taken["empty"].append(second - first)
            taken["in-process"].append(third - second)
    return taken


@dataclass(frozen=True)
class Rate:
    """What 64 clients got through."""

    calls: float  # a second
    server_ms: float  # CPU of the server's processes, of one call
    clients_ms: float  # CPU of all clients' process, of one call


def _cpu_ms(*processes: psutil.Process) -> float:
    return 1e3 * sum(sum(process.cpu_times()[:2]) for process in processes)


async def rate(call: Callable[[int], Call], *, seconds: float, served_by: psutil.Process) -> Rate:
    """Has 64 clients call as fast as they are answered, each with one call in flight."""
    ends: list[float] = []
    calls = 0
    serving = (served_by, *served_by.children(recursive=True))
    used = _cpu_ms(*serving), _cpu_ms(psutil.Process())
    warm = time.perf_counter() + min(1.0, seconds / 4)
    stop = warm + seconds

    async def client(number: int) -> None:
        nonlocal calls
        make = call(number)
        while time.perf_counter() < stop:
            await make()
            calls += 1
            if (now := time.perf_counter()) >= warm:
                ends.append(now)

    await asyncio.gather(*map(client, range(CLIENTS)))
    return Rate(
        calls=sum(end < stop for end in ends) / seconds,
        server_ms=(_cpu_ms(*serving) - used[0]) / calls,
        clients_ms=(_cpu_ms(psutil.Process()) - used[1]) / calls,
    )


def best_rate(peers: Sequence[InProcess], draw: Callable[[], list[str]], *, seconds: float) -> tuple[float, int]:
    """Histories a second of the in-process peer at the batch that suits it best, and that batch."""
    found = []
    for peer in peers:
        for batch in BATCHES:
            histories = [draw() for _ in range(batch)]
            peer(histories)
            runs, started = 0, time.perf_counter()
            while time.perf_counter() - started < seconds / len(BATCHES) or runs < 2:
                peer(histories)
                runs += 1
            found.append((runs * batch / (time.perf_counter() - started), batch))
    return max(found)


async def measure(
    address: str, process: psutil.Process, catalog: str, peers: Sequence[InProcess], given: argparse.Namespace
) -> list[Row]:
    """The figures of one catalog."""
    items = len(peers[0].ids)
    rng = np.random.default_rng(1)
    measured: list[Row] = []
    by = f" {given.workers} workers" if given.workers > 1 else ""

    def draw() -> list[str]:
        return [peers[0].ids[row] for row in rng.choice(items, HISTORY, replace=False)]

    with opened(address, catalog, CLIENTS) as clients:
        for number in range(CLIENTS):
            await clients.empty(number)
        taken = await one_client(clients, peers[0], draw, given.calls)
        p50 = {name: statistics.median(seconds) * 1e3 for name, seconds in taken.items()}
        p99 = {name: float(np.percentile(seconds, 99)) * 1e3 for name, seconds in taken.items()}
        summed = p50["in-process"] + p50["empty"]
        how = (
            f"{given.calls} calls, {items:,} items, history {HISTORY}, k {K}; peer: p50 in-process "
            f"{p50['in-process']:.3f} ms + p50 empty RPC {p50['empty']:.3f} ms (their p99: {p99['in-process']:.3f}, "
            f"{p99['empty']:.3f} ms)"
        )
        part = f"recommend-{items // 1_000}k{by}"
        measured.append(Row(f"{part}/p50", p50["ours"], "ms", how, peer=summed, target=1.3, better="lower"))
        measured.append(Row(f"{part}/p99", p99["ours"], "ms", how, peer=summed, target=3.0, better="lower"))

        def recommending(client: int) -> Call:
            drawn = [draw() for _ in range(64)]
            turn = iter(range(1 << 62))
            return lambda: clients.recommend(client, drawn[next(turn) % 64])

        served, empties, alone = [], [], []
        for _ in range(given.rounds):  # in turns: whatever else the machine does, it does to all of them
            served.append(await rate(recommending, seconds=given.seconds, served_by=process))
            emptied = rate(lambda client: lambda: clients.empty(client), seconds=given.seconds, served_by=process)
            empties.append(await emptied)
            alone.append(best_rate(peers, draw, seconds=given.seconds))
        ours, empty = (sorted(rates, key=lambda one: one.calls)[len(rates) // 2] for rates in (served, empties))
        in_process, batch = sorted(alone)[len(alone) // 2]
        how = (
            f"{CLIENTS} clients, one call in flight each, median of {given.rounds} rounds of {given.seconds:g} s, "
            f"{items:,} items, history {HISTORY}, k {K}; in-process {in_process:,.0f}/s at batch {batch}, empty RPCs "
            f"{empty.calls:,.0f}/s; CPU of a call: server {ours.server_ms:.3f} ms, clients {ours.clients_ms:.3f} ms; "
            f"of an empty RPC: {empty.server_ms:.3f} ms, {empty.clients_ms:.3f} ms"
        )
        large = items > 50_000
        part = f"clients-{items // 1_000}k{by}"
        for name, peer, target in (
            ("in-process", in_process, 0.6 if large else None),
            ("empty", empty.calls, None if large else 0.7),
        ):
            measured.append(Row(f"{part}/{name}", ours.calls, "calls/s", how, peer=peer, target=target))
    return measured


def main() -> int:
    """Returns 1 where a target is missed."""
    if sys.argv[1:2] == ["--train"]:
        train(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--items", type=int, action="append", help="of the catalogue; 10,000 and 100,000 by default")
    parser.add_argument("--calls", type=int, default=1_000, help="of the single client")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each round of the 64 clients")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="processes that answer")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "serving.json")
    given = parser.parse_args()
    on = machine("grpcio", "protobuf", "onnxruntime", "numpy")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    measured: list[Row] = []
    with (
        tempfile.TemporaryDirectory() as name,
        server(Path(name), workers=given.workers) as (address, process),
        dmesr.connect(address) as root,
    ):
        for items in given.items or (10_000, 100_000):
            folder = Path(name) / f"c{items}"
            folder.mkdir()
            root.admin.create_catalog(f"c{items}")
            client = root.catalog(f"c{items}")
            fill(client, items=items, folder=folder)
            read = client.embeddings.read(model="production")
            vectors_NV = read.matrix("vector")
            peers = [
                InProcess(folder / "artefact", ids=read.ids, vectors_NV=vectors_NV, tower_threads=threads)
                for threads in sorted({1, cores})
            ]
            measured += asyncio.run(measure(address, process, f"c{items}", peers, given))
            print(figures.table(measured[-4:]), flush=True)
    measured = [Row(**{**vars(row), "how": f"{row.how}; {on}"}) for row in measured]
    figures.merge(given.output, measured)
    print(json.dumps([row.to_json() for row in measured], indent=1))
    print(f"\nwritten to {given.output}")
    return int(any(row.met is False for row in measured))


if __name__ == "__main__":
    sys.exit(main())
