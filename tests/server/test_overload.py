"""More than a server takes: refused with a hint; and clients that stop in the middle, which keep nothing for ever."""

from __future__ import annotations

import contextlib
import hashlib
import io
import queue
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import psutil
import pytest
from dmesr.v1 import admin_pb2, embeddings_pb2, enrichment_pb2, items_pb2, models_pb2, recommendations_pb2
from dmesr_server.api.admission import KINDS
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from PIL import Image
from running_server import RunningServer
from wire import Stubs, eventually, failure_of, serving

_FILES = (admin_pb2, embeddings_pb2, enrichment_pb2, items_pb2, models_pb2, recommendations_pb2)


def test_every_call_has_a_kind():
    calls = {
        f"{service.name}/{method.name}"
        for file in _FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert set(KINDS) == calls


_TOKEN = "s3cret"
_METADATA = (("authorization", f"Bearer {_TOKEN}"),)


class Upload:
    """A stream of items that stays open as long as the test wants."""

    def __init__(self, stubs: Stubs):
        self._requests: queue.Queue[items_pb2.UpsertItemsRequest | None] = queue.Queue()
        self.answers = stubs.items.UpsertItems(iter(self._requests.get, None), metadata=_METADATA)

    def send(self, item_id: str) -> None:
        """Sends an item and waits until it is stored."""
        self._requests.put(items_pb2.UpsertItemsRequest(items=[items_pb2.Item(item_id=item_id)]))
        (result,) = next(self.answers).results
        assert result.outcome == items_pb2.ROW_OUTCOME_INSERTED

    def end(self) -> None:
        self._requests.put(None)
        assert not list(self.answers)


@contextlib.contextmanager
def connected(server: RunningServer, *options: tuple[str, int]) -> Iterator[Stubs]:
    with grpc.insecure_channel(server.address, options=options) as channel:
        yield Stubs.of(channel)


def put(
    stubs: Stubs, *item_ids: str, metadata: tuple[tuple[str, str], ...] = _METADATA
) -> list[items_pb2.UpsertItemsResponse]:
    """Stores items by a stream of one message."""
    request = items_pb2.UpsertItemsRequest(items=[items_pb2.Item(item_id=item_id) for item_id in item_ids])
    return list(stubs.items.UpsertItems(iter([request]), metadata=metadata))


def item_ids(stubs: Stubs) -> list[str]:
    """All items that are there."""
    answer = stubs.items.ListItems(items_pb2.ListItemsRequest(), metadata=_METADATA)
    return sorted(item.item_id for item in answer.items)


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One upload at a time, and none waits."""
    server = RunningServer(
        tmp_path_factory.mktemp("small"),
        enricher=False,
        server__token=_TOKEN,
        admission__uploads_running=1,
        admission__uploads_waiting=0,
    )
    yield server.start()
    server.stop()


def test_what_is_beyond_the_limit_is_refused_with_a_hint_and_health_answers(small_server: RunningServer):
    with connected(small_server) as stubs:
        first = Upload(stubs)
        first.send("1")
        with pytest.raises(grpc.RpcError) as caught:
            put(stubs, "2")
        status = rpc_status.from_call(caught.value)
        assert status is not None
        told = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(told) for detail in status.details)
        assert 0.1 <= told.retry_delay.ToTimedelta().total_seconds() <= 10

        refused = failure_of(lambda: put(stubs, "2"))
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert refused.metadata == {"kind": "uploads", "running": "1", "waiting": "0"}
        assert "try again in" in refused.message
        # Strangers take no place, and hear that they are strangers.
        stranger = failure_of(lambda: put(stubs, "2", metadata=()))
        assert stranger.reason == "UNAUTHENTICATED"

        # Other kinds have places of their own, and health and reflection need none.
        assert serving(stubs.channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        reflecting = reflection_pb2_grpc.ServerReflectionStub(stubs.channel)
        answers = reflecting.ServerReflectionInfo(iter([asked]), metadata=_METADATA)
        assert next(answers).list_services_response.service
        assert item_ids(stubs) == ["1"]

        first.send("3")
        first.end()
        put(stubs, "2")  # room again
        assert item_ids(stubs) == ["1", "2", "3"]
    assert small_server.log.count("overloaded: ") == 1  # a line for all of them
    assert "Traceback" not in small_server.log


@pytest.fixture(scope="module")
def strict_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Streams in which nothing moves are ended soon."""
    server = RunningServer(
        tmp_path_factory.mktemp("strict"),
        enricher=False,
        admission__uploads_running=1,
        admission__uploads_waiting=0,
        admission__downloads_running=1,
        admission__downloads_waiting=0,
        admission__idle_seconds=1.0,
    )
    yield server.start()
    server.stop()


def test_an_upload_that_stops_is_ended_and_its_place_is_free(strict_server: RunningServer):
    with connected(strict_server) as stubs:
        stopped = Upload(stubs)
        stopped.send("1")
        ended = failure_of(lambda: next(stopped.answers))
        assert (ended.code, ended.reason) == (grpc.StatusCode.ABORTED, "STREAM_IDLE")
        assert "admission.idle_seconds" in ended.message
        put(stubs, "2")
        silent: Iterator[models_pb2.PublishModelRequest] = iter(queue.Queue().get, None)
        assert failure_of(lambda: stubs.models.PublishModel(silent)).reason == "STREAM_IDLE"
        assert item_ids(stubs) == ["1", "2"]


def test_a_stream_in_which_the_server_has_nothing_to_tell_is_not_idle(strict_server: RunningServer):
    with connected(strict_server) as stubs:
        job = stubs.enrichment.StartJob(enrichment_pb2.StartJobRequest()).job
        # No enricher takes it: nothing is told for longer than that.
        watch = stubs.enrichment.WatchJob(enrichment_pb2.WatchJobRequest(job_id=job.job_id), timeout=4.0)
        next(watch)
        with pytest.raises(grpc.RpcError) as caught:
            next(watch)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def noise() -> bytes:
    """A picture that is more than a connection holds unread."""
    pixels = np.random.default_rng(0).integers(0, 256, (1_200, 1_200, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


#: A client that takes no more from its connection than the protocol obliges it to.
_NARROW = (("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1))


def uploaded(stubs: Stubs, picture: bytes) -> items_pb2.GetPictureRequest:
    sha256 = hashlib.sha256(picture).hexdigest()
    chunks = [picture[start : start + (1 << 20)] for start in range(0, len(picture), 1 << 20)]
    requests = [
        items_pb2.UploadPicturesRequest(sha256=sha256, data=chunk, last=chunk is chunks[-1]) for chunk in chunks
    ]
    (answer,) = stubs.items.UploadPictures(iter(requests))
    assert answer.outcome == items_pb2.ROW_OUTCOME_INSERTED
    return items_pb2.GetPictureRequest(sha256=sha256)


def test_a_download_that_nobody_reads_is_ended_and_its_place_is_free(strict_server: RunningServer):
    picture = noise()
    with connected(strict_server) as stubs, connected(strict_server, *_NARROW) as slow:
        wanted = uploaded(stubs, picture)
        unread = slow.items.GetPicture(wanted)
        unread.initial_metadata()  # it has begun

        def read() -> bool:
            try:
                return b"".join(chunk.data for chunk in stubs.items.GetPicture(wanted)) == picture
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                return False

        eventually(read, seconds=30)
        assert failure_of(lambda: list(unread)).reason == "STREAM_IDLE"


def connections(server: RunningServer) -> list[int]:
    """The ports of the clients that are connected."""
    port = int(server.address.rpartition(":")[2])
    return [
        one.raddr.port
        for one in psutil.Process(server.api_pid).net_connections("tcp")
        if one.laddr.port == port and one.status == psutil.CONN_ESTABLISHED
    ]


def test_connections_are_renewed_and_no_call_is_lost(start_server: Callable[..., RunningServer]):
    server = start_server(enricher=False, admission__idle_seconds=0.5, admission__connection_seconds=1.0)
    with connected(server) as stubs:
        wanted = uploaded(stubs, noise())
    with connected(server, *_NARROW) as slow:
        unread = slow.items.GetPicture(wanted)
        unread.initial_metadata()
        eventually(lambda: len(connections(server)) == 1)
        (first,) = connections(server)
        seen = {first}

        def renewed() -> bool:
            stubs.admin.ListCatalogs(admin_pb2.ListCatalogsRequest())
            seen.update(connections(server))
            return len(seen) > 3 and first not in connections(server)

        with connected(server) as stubs:
            eventually(renewed, seconds=30)
        # What gRPC kept for the one that read nothing went with its connection.
        with pytest.raises(grpc.RpcError):
            list(unread)
