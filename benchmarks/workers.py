"""`python -m benchmarks.workers`: how soon other workers see a change, and how much memory each further one takes."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dmesr
import grpc
import numpy as np
import psutil
from dmesr.v1 import admin_pb2, admin_pb2_grpc, recommendations_pb2, recommendations_pb2_grpc

from benchmarks import rows as figures
from benchmarks.rows import Row, machine
from benchmarks.serving import fill, server

ROOT = Path(__file__).parents[1]
REPEATS = 15
WORKERS = 2


def other_worker(address: str, *, number: int) -> grpc.Channel:
    """A connection to one of the workers: new ones are made until the kernel deals it out."""
    while True:
        channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        info = admin_pb2_grpc.AdminServiceStub(channel).GetServerInfo(admin_pb2.GetServerInfoRequest())
        if info.worker == number:
            return channel
        channel.close()


def seconds_until(condition: Callable[[], bool], *, since: float) -> float:
    """From a moment on, at most a minute."""
    while not condition():
        if time.perf_counter() - since > 60:
            raise SystemExit("no worker ever saw it")
        time.sleep(0.002)
    return time.perf_counter() - since


def measure(folder: Path, *, items: int) -> list[Row]:
    """Changes by one worker, seen by the other; then the memory of both."""
    how = machine("grpcio", "lancedb", "dmesr")
    with server(folder, workers=WORKERS) as (address, parent), dmesr.connect(address, channels=1) as client:
        fill(client, items=items, folder=folder)
        mine = client.admin.server_info().worker
        with other_worker(address, number=1 - mine) as channel:
            stub = recommendations_pb2_grpc.RecommendationServiceStub(channel)

            def recommended(history: str, *, model: str = "") -> recommendations_pb2.RecommendResponse:
                request = recommendations_pb2.RecommendRequest(
                    model=model, history=recommendations_pb2.History(item_ids=[history])
                )
                return stub.Recommend(request)

            (model,) = client.models.list()
            promoted, written = [], []
            for repeat in range(REPEATS):
                alias = f"alias-{repeat}"
                client.models.promote(f"{model.name}:{model.version}", alias=alias)
                started = time.perf_counter()
                promoted.append(seconds_until(lambda alias=alias: _known(recommended, alias), since=started))
            for repeat in range(REPEATS):
                item_id = f"new-{repeat}"
                client.items.upsert([dmesr.Item(item_id, {"title": item_id})])
                vectors = np.random.default_rng(repeat).standard_normal((1, 32), np.float32)
                client.embeddings.write(recipe="random", source="text", item_ids=[item_id], vectors=vectors)
                started = time.perf_counter()
                written.append(
                    seconds_until(lambda item_id=item_id: not recommended(item_id).list.unknown_item_ids, since=started)
                )
        processes = parent.children()
        seconds_until(lambda: len({_matrix(process) for process in processes}) == 1, since=time.perf_counter())
        for number in range(WORKERS):  # each has looked at the whole matrix
            with other_worker(address, number=number) as channel:
                recommendations_pb2_grpc.RecommendationServiceStub(channel).Recommend(
                    recommendations_pb2.RecommendRequest(history=recommendations_pb2.History(item_ids=["i0000001"]))
                )
        mapped = [_mapped(process) for process in processes]
    said = f"{WORKERS} workers, {items} items; {how}"
    return [
        *_latencies(f"{items} items/a promote seen by the other worker", promoted, said),
        *_latencies(f"{items} items/a new item's vector adapted and served by the other worker", written, said),
        Row(
            name=f"{items} items/matrix in the memory of one worker, its share",
            value=max(pss for _, pss in mapped) / 1e6,
            peer=max(rss for rss, _ in mapped) / 1e6,
            unit="MB",
            better="lower",
            target=0.55,
            how=f"{said}; Pss of the mapped vectors.npy beside its Rss, the worker where it is larger",
        ),
    ]


def _known(recommended: Callable[..., object], alias: str) -> bool:
    try:
        recommended("i0000001", model=alias)
    except grpc.RpcError:
        return False
    return True


def _latencies(name: str, seconds: list[float], said: str) -> list[Row]:
    how = f"{REPEATS} times, from the answer of the call that changed it; {said}"
    return [
        Row(name=f"{name}, p50", value=statistics.median(seconds) * 1e3, unit="ms", better="lower", how=how),
        Row(name=f"{name}, most", value=max(seconds) * 1e3, unit="ms", better="lower", target=1_000, how=how),
    ]


def _matrix(process: psutil.Process) -> str:
    """The file that is mapped: another one for each state of the table."""
    return next((one.path for one in process.memory_maps(grouped=False) if one.path.endswith("vectors.npy")), "")


def _mapped(process: psutil.Process) -> tuple[int, int]:
    of_it = [one for one in process.memory_maps(grouped=False) if one.path.endswith("vectors.npy")]
    return sum(one.rss for one in of_it), sum(one.pss for one in of_it)


def main() -> int:
    """Measures and writes; 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "workers.json")
    given = parser.parse_args()
    rows = []
    for items in given.items:
        with tempfile.TemporaryDirectory(prefix="dmesr-bench-") as folder:
            rows += measure(Path(folder), items=items)
    figures.merge(given.output, rows)
    sys.stdout.write(figures.table(rows) + "\n")
    return int(any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
