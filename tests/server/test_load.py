"""More clients than a server takes: it refuses some, crashes for none, and its memory stays as it is.

`make test-load`: 500 clients for 2 minutes (DMESR_LOAD_CLIENTS, _SECONDS, _WORKERS); `make test` does with 64 for 3 s.

Each client has a connection of its own and does what its kind does without pause, unless the server asks for one. Two
of five have no manners and come back at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import dmesr
import grpc
import grpc.aio
import psutil
import pytest
from dmesr.status import final_status, with_first_status
from dmesr.v1 import (
    embeddings_pb2,
    embeddings_pb2_grpc,
    items_pb2,
    items_pb2_grpc,
    recommendations_pb2,
    recommendations_pb2_grpc,
)
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from published import serve
from running_server import RunningServer

CLIENTS = int(os.environ.get("DMESR_LOAD_CLIENTS", "64"))
WORKERS = int(os.environ.get("DMESR_LOAD_WORKERS", "1"))
SECONDS = float(os.environ.get("DMESR_LOAD_SECONDS", "3"))
IDS = [f"i{number:04d}" for number in range(2_000)]
#: Below this many seconds the memory is still growing to what the server needs.
_SETTLED_SECONDS = 60.0
#: In the second half, of each process. Not nothing: each write makes versions of tables, and what the store's caches
#: keep of them, up to a bound of 64 MiB, may still be growing. Without writes it is 2 MiB.
_GROWTH_BYTES = 64 * 1024 * 1024
_IN_FLIGHT = 2  # calls of a client that only recommends
_LOG = logging.getLogger(__name__)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    """A server that takes fewer calls than will come, with a model in production."""
    server = RunningServer(
        tmp_path / "load",
        enricher=False,
        server__workers=WORKERS,
        admission__recommendations_running=CLIENTS // 2,
        admission__recommendations_waiting=CLIENTS // 2,
        admission__uploads_running=max(CLIENTS // 64, 1),
        admission__uploads_waiting=max(CLIENTS // 64, 1),
        admission__downloads_running=max(CLIENTS // 64, 1),
        admission__downloads_waiting=max(CLIENTS // 64, 1),
        admission__idle_seconds=2.0,
    ).start()
    with dmesr.connect(server.address) as client:
        client.items.upsert(dmesr.Item(item_id, {"title": f"Film {item_id}"}) for item_id in IDS)
        serve(client, IDS, tmp_path / "artefact")
    yield server
    server.stop()


class Load:
    """What many clients did, and what they were told.

    Attributes:
        statuses: How often each kind of call ended how.
        seconds: How long each accepted call took, by kind.
        strange: What no client should ever hear.
    """

    def __init__(self, server: RunningServer):
        self.statuses: dict[str, Counter[str]] = defaultdict(Counter)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.strange: list[str] = []
        self.resident: list[int] = []
        self.cpu_seconds = 0.0, 0.0
        pids = server.worker_pids if WORKERS > 1 else [server.api_pid]
        self._processes = [psutil.Process(pid) for pid in pids]
        self._address = server.address
        self._end = 0.0

    async def run(self) -> None:
        """All clients at once, until the time is up and each has ended its call."""
        self._end = asyncio.get_running_loop().time() + SECONDS
        kinds = [self._recommend] * 14 + [self._neighbours, self._read, self._batch, self._write, self._download]
        kinds.append(self._stop_midway)
        before = self._cpu()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            for number in range(CLIENTS):
                group.create_task(self._client(number, kinds[number % len(kinds)]))
        after = self._cpu()
        self.cpu_seconds = after[0] - before[0], after[1] - before[1]

    def _cpu(self) -> tuple[float, float]:
        """Seconds that the server's processes have worked, and all clients together."""
        served = sum(sum(process.cpu_times()[:2]) for process in self._processes)
        return served, sum(psutil.Process().cpu_times()[:2])

    async def _client(self, number: int, kind: Callable[[Any, random.Random], Awaitable[None]]) -> None:
        rng = random.Random(number)
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        async with grpc.aio.insecure_channel(self._address, options=options) as channel:

            async def calls() -> None:
                while asyncio.get_running_loop().time() < self._end:
                    await self._call(kind, channel, rng, polite=number % 5 > 1)

            await asyncio.gather(*[calls() for _ in range(_IN_FLIGHT if kind == self._recommend else 1)])

    async def _call(
        self, kind: Callable[..., Awaitable[None]], channel: Any, rng: random.Random, *, polite: bool
    ) -> None:
        name = kind.__name__.strip("_")
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await kind(channel, rng)
        except grpc.aio.AioRpcError as error:
            code, reason, hint = _told(error)
            self.statuses[name][reason or code.name] += 1
            deadline = code is grpc.StatusCode.DEADLINE_EXCEEDED and kind == self._recommend
            stopped = reason == "STREAM_IDLE" and kind == self._stop_midway
            if not (deadline or stopped or (reason == "OVERLOADED" and hint is not None)):
                self.strange.append(f"{name}: {code} {error.details()}")
            if polite and hint is not None:
                await asyncio.sleep(hint * rng.uniform(1.0, 1.5))
        else:
            self.statuses[name]["OK"] += 1
            self.seconds[name].append(loop.time() - began)

    async def _recommend(self, channel: Any, rng: random.Random) -> None:
        request = recommendations_pb2.RecommendRequest(
            history=recommendations_pb2.History(item_ids=rng.sample(IDS, 3)),
            settings=recommendations_pb2.RecommendSettings(k=10),
        )
        # Some wait no longer than this.
        timeout = 0.2 if rng.random() < 0.05 else None
        answer = await recommendations_pb2_grpc.RecommendationServiceStub(channel).Recommend(request, timeout=timeout)
        assert len(answer.list.recommendations) == 10

    async def _batch(self, channel: Any, rng: random.Random) -> None:
        histories = [recommendations_pb2.History(item_ids=rng.sample(IDS, 3)) for _ in range(50)]
        request = recommendations_pb2.BatchRecommendRequest(
            histories=histories, settings=recommendations_pb2.RecommendSettings(k=10)
        )
        answer = await recommendations_pb2_grpc.RecommendationServiceStub(channel).BatchRecommend(request)
        assert len(answer.lists) == 50

    async def _neighbours(self, channel: Any, rng: random.Random) -> None:
        request = embeddings_pb2.FindNeighboursRequest(recipe="ours", source="text", item_id=rng.choice(IDS), k=10)
        answer = await embeddings_pb2_grpc.EmbeddingServiceStub(channel).FindNeighbours(request)
        assert len(answer.neighbours) == 10

    async def _read(self, channel: Any, rng: random.Random) -> None:
        request = items_pb2.GetItemsRequest(item_ids=rng.sample(IDS, 20))
        assert len((await items_pb2_grpc.ItemServiceStub(channel).GetItems(request)).items) == 20

    async def _write(self, channel: Any, rng: random.Random) -> None:
        title = items_pb2.Attribute(name="title", values=[f"Film {rng.randrange(1_000)}"])
        items = [items_pb2.Item(item_id=item_id, attributes=[title]) for item_id in rng.sample(IDS, 10)]
        async with _uploading(channel) as call:
            await call.write(items_pb2.UpsertItemsRequest(items=items))
            await call.done_writing()
            answers = [answer async for answer in call]
        assert sum(len(answer.results) for answer in answers) == 10

    async def _download(self, channel: Any, rng: random.Random) -> None:
        call = embeddings_pb2_grpc.EmbeddingServiceStub(channel).ReadEmbeddings(
            embeddings_pb2.ReadEmbeddingsRequest(recipe="ours")
        )
        async for _ in call:
            if rng.random() < 0.2:
                call.cancel()  # some lose interest, and read no further
                return
            await asyncio.sleep(0.01)  # nobody is in a hurry

    async def _stop_midway(self, channel: Any, rng: random.Random) -> None:
        """Sends a message, and then nothing more; or goes away without a word."""
        gone = rng.random() < 0.5
        async with _uploading(channel) as call:
            await call.write(items_pb2.UpsertItemsRequest(items=[items_pb2.Item(item_id=rng.choice(IDS))]))
            if await call.read() is not grpc.aio.EOF and gone:
                call.cancel()
                return
            await call.read()

    async def _watch(self) -> None:
        """Health answers throughout, and the processes' memory is noted."""
        async with grpc.aio.insecure_channel(self._address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            while asyncio.get_running_loop().time() < self._end:
                answer = await health.Check(health_pb2.HealthCheckRequest())
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
                self.resident.append(sum(process.memory_info().rss for process in self._processes))
                await asyncio.sleep(0.25)

    def report(self) -> None:
        """Writes what came of it into the log."""
        for name, counts in sorted(self.statuses.items()):
            took = sorted(self.seconds[name])
            total = counts.total()
            _LOG.info(
                "%-12s %7d calls, %6.1f OK/s, refused %4.1f %%, p50 %6.1f ms, p99 %6.1f ms: %s",
                name,
                total,
                counts["OK"] / SECONDS,
                100 * counts["OVERLOADED"] / total,
                1_000 * _percentile(took, 0.5),
                1_000 * _percentile(took, 0.99),
                dict(counts),
            )
        _LOG.info("%d API processes worked %.1f s, all clients together %.1f s", WORKERS, *self.cpu_seconds)
        _LOG.info(
            "their memory: %d MiB at half-time, %d MiB at the end, %d MiB at most",
            self.resident_at(0.5) >> 20,
            self.resident_at(1.0) >> 20,
            max(self.resident) >> 20,
        )

    def resident_at(self, share: float) -> int:
        """Bytes of memory around a time of the run: the median of a tenth of it."""
        width = max(len(self.resident) // 10, 1)
        end = max(round(share * len(self.resident)), width)
        return int(statistics.median(self.resident[end - width : end]))


@contextlib.asynccontextmanager
async def _uploading(channel: Any) -> AsyncIterator[Any]:
    """A stream of items whose end is told as the server told it, not as grpc's client does after a late write."""
    call: Any = with_first_status(items_pb2_grpc.ItemServiceStub(channel).UpsertItems())
    try:
        yield call
    except grpc.aio.AioRpcError as error:
        raise await final_status(call, error) from None


def _told(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str, float | None]:
    """Code, reason and hint, in seconds, of a failed call."""
    call: Any = error
    status = rpc_status.from_call(call)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    hint = None
    for detail in status.details if status is not None else ():
        detail.Unpack(info)
        if detail.Unpack(retry):
            hint = retry.retry_delay.ToTimedelta().total_seconds()
    return error.code(), info.reason, hint


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


def test_more_clients_than_it_takes(server: RunningServer):
    pid = server.api_pid
    load = Load(server)
    asyncio.run(load.run())
    load.report()

    assert not load.strange, load.strange[:5]
    assert load.statuses["recommend"]["OK"], load.statuses
    assert sum(counts["OVERLOADED"] for counts in load.statuses.values()), "nobody was refused: this was no load"
    assert server.api_pid == pid
    assert psutil.pid_exists(pid)
    assert "Traceback" not in server.log
    if SECONDS >= _SETTLED_SECONDS:
        assert load.resident_at(1.0) - load.resident_at(0.5) < _GROWTH_BYTES * WORKERS
    # All places are free again.
    with dmesr.connect(server.address) as client:
        assert len(client.recommend(history=IDS[:3], k=10)) == 10
        assert len(client.embeddings.read(recipe="ours")) == len(IDS)
        assert client.items.upsert([dmesr.Item("last")]).inserted == 1
