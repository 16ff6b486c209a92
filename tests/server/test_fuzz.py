"""Every RPC gets messages that nobody would send: none may crash the server, be its fault, or leave anything behind.

A few inputs for each RPC in the suite; DMESR_FUZZ_INPUTS sets how many in all (`make test-fuzz`: 100,000). What was
found stays as a test of its own beside what it broke.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import socket
import tempfile
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import dmesr.v1
import grpc
import odd_messages
import pytest
import tiny_artefact
from dmesr.v1 import (
    admin_pb2,
    embeddings_pb2,
    enrichment_pb2,
    items_pb2,
    models_pb2,
    recommendations_pb2,
)
from dmesr_server.api.read_only import READING
from google.protobuf.descriptor import MethodDescriptor
from grpc_status import rpc_status
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from published import LEARNED, fill, promote, publish
from running_server import RunningServer
from wire import Stubs, failure_of

FILES = (admin_pb2, embeddings_pb2, enrichment_pb2, items_pb2, models_pb2, recommendations_pb2)
METHODS: list[MethodDescriptor] = [
    method for file in FILES for service in file.DESCRIPTOR.services_by_name.values() for method in service.methods
]
INPUTS = int(os.environ.get("DMESR_FUZZ_INPUTS", len(METHODS) * 12))
#: What makes or copies whole tables when it is let through: a tenth of the inputs of the others.
COSTLY = {"CreateCatalog", "DropCatalog", "SnapshotStore", "CompactStore", "PublishModel"}
SEED = "seed"
NAMES = (SEED, "default", "a", "b", "new", "ours", "tiny", "tiny:1", "production", "text", "image", "original", "title")
#: Whoever waits for the end of a job that nobody runs is told so by the deadline.
WAITING = {"WatchJob"}
_PLOT = items_pb2.Attribute(name="plot", values=["x" * 1_500])
_NO_SECOND_TRY = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
#: Only a caller's fault, or what the caller can do nothing about and is told with a reason.
NEVER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNIMPLEMENTED}


@dataclass(frozen=True)
class Target:
    """The server, and what it holds that no rejected message may change."""

    server: RunningServer
    stubs: Stubs
    artefact: Path

    def sow(self) -> None:
        """Makes the seed's catalog where it is not there: an odd message may have been right to drop it."""
        if SEED in self.catalogs():
            return
        self.stubs.admin.CreateCatalog(admin_pb2.CreateCatalogRequest(name=SEED))
        recipe_id = fill(self.stubs, SEED)
        folder = Path(tempfile.mkdtemp(dir=self.artefact)) / "tiny"
        publish(self.stubs, SEED, tiny_artefact.write(folder, recipe_id=recipe_id, items=LEARNED))
        promote(self.stubs, SEED, "tiny", "production")

    def catalogs(self) -> set[str]:
        """Their names."""
        return {found.name for found in self.stubs.admin.ListCatalogs(admin_pb2.ListCatalogsRequest()).catalogs}

    def state(self) -> bytes:
        """Everything that calls can change, as bytes."""
        parts = []
        catalogs = self.stubs.admin.ListCatalogs(admin_pb2.ListCatalogsRequest())
        parts.append(catalogs)
        for catalog in [found.name for found in catalogs.catalogs]:
            parts += [
                self.stubs.items.ListItems(items_pb2.ListItemsRequest(catalog=catalog)),
                self.stubs.embeddings.ListRecipes(embeddings_pb2.ListRecipesRequest(catalog=catalog)),
                self.stubs.models.ListModels(models_pb2.ListModelsRequest(catalog=catalog)),
                self.stubs.models.ListAliases(models_pb2.ListAliasesRequest(catalog=catalog)),
                self.stubs.enrichment.ListJobs(enrichment_pb2.ListJobsRequest(catalog=catalog)),
            ]
        return b"\n".join(part.SerializeToString(deterministic=True) for part in parts)

    def drop_others(self, names: Collection[str]) -> None:
        """Drops every catalog but these: looking at hundreds after each input would take most of the time."""
        for catalog in self.catalogs() - set(names):
            self.stubs.admin.DropCatalog(admin_pb2.DropCatalogRequest(name=catalog))


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the seed's model is written."""
    return tmp_path_factory.mktemp("artefact")


@pytest.fixture(scope="module")
def target(api_server: RunningServer, stubs: Stubs, artefact: Path) -> Target:
    """A server with a catalog, vectors, a model and an alias."""
    found = Target(api_server, stubs, artefact)
    found.sow()
    return found


@pytest.fixture(scope="module", autouse=True)
def sound(api_server: RunningServer) -> Iterator[None]:
    """After all of it, the same process answers and its log holds no traceback."""
    pid = api_server.api_pid
    yield
    assert api_server.api_pid == pid
    with grpc.insecure_channel(api_server.address) as channel:
        Stubs.of(channel).admin.GetServerInfo(admin_pb2.GetServerInfoRequest(), timeout=20)
    assert "Traceback" not in api_server.log, api_server.log[api_server.log.index("Traceback") - 500 :][:4000]


def _send(target: Target, method: MethodDescriptor, sent: list[bytes]) -> tuple[grpc.StatusCode, int, str]:
    """Sends bytes as they are; the code, how many messages came back, and what was said."""
    assert method.containing_service is not None
    path = f"/{method.containing_service.full_name}/{method.name}"
    seconds = 0.3 if method.name in WAITING else 30
    kind = ("stream" if method.client_streaming else "unary", "stream" if method.server_streaming else "unary")
    call = getattr(target.stubs.channel, "_".join(kind))(path)
    came = 0
    try:
        answer = call(iter(sent) if method.client_streaming else sent[0], timeout=seconds)
        if method.server_streaming:
            for _ in answer:
                came += 1
                if came == 50:
                    answer.cancel()
                    break
        else:
            came = 1
    except grpc.RpcError as raised:
        failed = raised
    else:
        return grpc.StatusCode.OK, came, ""
    status = None
    with contextlib.suppress(ValueError):
        status = rpc_status.from_call(failed)
    if failed.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
        assert status is not None, f"{path}: {failed.code()} without a reason: {failed.details()}"
    return failed.code(), came, failed.details()


def _inputs(method: MethodDescriptor) -> int:
    shares = sum(0.1 if other.name in COSTLY else 1.0 for other in METHODS)
    return math.ceil(INPUTS / shares * (0.1 if method.name in COSTLY else 1.0))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_odd_messages(method: MethodDescriptor, target: Target):
    """Any bytes: never the server's fault, and nothing is left of what was refused."""
    assert method.containing_service is not None
    writes = f"{method.containing_service.name}/{method.name}" not in READING
    most = 3 if method.client_streaming else 1
    kept = target.catalogs()
    before = [target.state()]

    @settings(
        max_examples=_inputs(method),
        deadline=None,
        database=None,
        derandomize="DMESR_FUZZ_INPUTS" not in os.environ,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )
    @given(sent=st.lists(odd_messages.payloads(method.input_type, names=NAMES), min_size=1, max_size=most))
    def odd(sent: list[bytes]) -> None:
        code, came, said = _send(target, method, sent)
        assert code not in NEVER, f"{method.name}: {code} {said}"
        assert code is not grpc.StatusCode.DEADLINE_EXCEEDED or method.name in WAITING, f"{method.name} did not end"
        if not writes:
            return
        if method.name == "CreateCatalog" and code is grpc.StatusCode.OK:
            target.drop_others(kept)
        if method.name == "DropCatalog" and code is grpc.StatusCode.OK:
            target.sow()
        after = target.state()
        # Of a stream, messages before the bad one may have been taken in; they were acknowledged.
        if code is not grpc.StatusCode.OK and not came and len(sent) == 1:
            assert after == before[-1], f"{method.name}: something is left of a message that was refused: {said}"
        before[:] = [after]

    odd()


def test_all_services_are_tried():
    names = {file.__name__.rpartition(".")[2] for file in FILES}
    assert names == {path.stem for path in Path(dmesr.v1.__path__[0]).glob("*_pb2.py")} - {"errors_pb2"}


class _Scissors:
    """A proxy on loopback that lets so many bytes of the client through, then cuts the connection."""

    def __init__(self, address: str, allowance: int):
        self._host, _, port = address.rpartition(":")
        self._port, self._left = int(port), allowance
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for held in [self._listening, *self._open]:
            with contextlib.suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)
            held.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection((self._host, self._port))
                self._open += [client, server]
                threading.Thread(target=self._carry, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._carry, args=(server, client, False), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if counted:
                    data, self._left = data[: self._left], self._left - len(data)
                sink.sendall(data)
                if counted and self._left <= 0:
                    self.close()


def test_a_stream_cut_at_any_byte_leaves_whole_items(target: Target):
    """Each item is there as it was sent or not at all, each acknowledged one is there, and the server goes on."""
    stubs, number = target.stubs, itertools.count()

    def item(name: str) -> items_pb2.Item:
        attributes = [items_pb2.Attribute(name="title", values=[f"{name} " * 20]), _PLOT]
        return items_pb2.Item(item_id=name, attributes=attributes)

    @settings(
        max_examples=max(6, INPUTS // 500),
        deadline=None,
        database=None,
        derandomize="DMESR_FUZZ_INPUTS" not in os.environ,
        suppress_health_check=list(HealthCheck),
    )
    @given(allowance=st.integers(1, 24_000))
    def cut(allowance: int) -> None:
        mark = f"cut-{next(number)}"
        sent = {name: item(name) for name in (f"{mark}-{place}" for place in range(12))}
        requests = [items_pb2.UpsertItemsRequest(catalog=SEED, items=[one]) for one in sent.values()]
        acknowledged: list[str] = []
        scissors = _Scissors(target.server.address, allowance)
        # Every code but OK is right for a connection that is gone; what counts is what is found afterwards.
        with (
            contextlib.closing(scissors),
            grpc.insecure_channel(scissors.address, options=_NO_SECOND_TRY) as channel,
            contextlib.suppress(grpc.RpcError),
        ):
            for answer in Stubs.of(channel).items.UpsertItems(iter(requests), timeout=20):
                acknowledged += [result.item_id for result in answer.results]
        found = stubs.items.GetItems(items_pb2.GetItemsRequest(catalog=SEED, item_ids=list(sent)))
        there = {one.item_id: one for one in found.items}
        assert set(acknowledged) <= set(there)
        for name, one in there.items():
            assert {(part.name, tuple(part.values)) for part in one.attributes} == {
                (part.name, tuple(part.values)) for part in sent[name].attributes
            }

    cut()


def test_what_was_found(target: Target):
    """Bytes that are no message came back without a reason; a name of 10 kB made the answer's header too long."""
    assert METHODS[0].containing_service is not None
    code, _, said = _send(target, METHODS[0], [b"\x1a"])
    assert (code, said[:40]) == (grpc.StatusCode.INVALID_ARGUMENT, "the bytes sent are no message of this me")

    failed = failure_of(lambda: target.stubs.items.GetItems(items_pb2.GetItemsRequest(catalog="a" * 10_000)))
    assert failed.reason in ("INVALID_FIELD", "CATALOG_NOT_FOUND")
    assert len(failed.message) < 1_000
    assert "characters left out" in failed.message
