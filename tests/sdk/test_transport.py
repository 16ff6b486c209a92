"""Retries, deadlines, credentials and closed clients, against a local server that misbehaves on purpose."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dmesr
import dmesr.aio
import grpc
import pytest
from dmesr.admin import CREATE, LIST
from dmesr.items import GET_PICTURE, UPSERT
from dmesr.transport import SERVER_INFO
from dmesr.v1 import admin_pb2, items_pb2

from .peer import Peer, refuse

FAST = dmesr.RetryPolicy(attempts=4, initial_pause_seconds=0.01, max_pause_seconds=0.02)
LIMITS = admin_pb2.Limits(
    max_message_bytes=4 << 20,
    max_items_per_batch=1_000,
    max_ids_per_call=50_000,
    max_picture_bytes=1 << 20,
    max_histories_per_call=100,
)


def with_limits(peer: Peer) -> None:
    peer.answer(SERVER_INFO, lambda *_: admin_pb2.GetServerInfoResponse(limits=LIMITS))


class Flaky:
    """Unavailable a number of times, then well."""

    def __init__(self, failures: int, *, reason: str | None = None) -> None:
        self.failures = failures
        self.reason = reason
        self.calls = 0

    def __call__(self, request: object, context: grpc.ServicerContext) -> admin_pb2.ListCatalogsResponse:
        self.calls += 1
        if self.calls <= self.failures:
            if self.reason:
                refuse(context, grpc.StatusCode.UNAVAILABLE, self.reason, "the store is away")
            context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
        return admin_pb2.ListCatalogsResponse(catalogs=[admin_pb2.Catalog(name="films")])


@pytest.mark.parametrize("reason", [None, "STORE_UNAVAILABLE"])
def test_a_read_is_tried_again_while_the_server_is_unavailable(peer: Peer, reason: str | None):
    flaky = Flaky(3, reason=reason)
    peer.answer(LIST, flaky)
    with dmesr.connect(peer.address, retry=FAST) as client:
        assert [catalog.name for catalog in client.admin.list_catalogs()] == ["films"]
    assert flaky.calls == 4


def test_attempts_are_counted(peer: Peer):
    flaky = Flaky(99)
    peer.answer(LIST, flaky)
    with (
        dmesr.connect(peer.address, retry=FAST) as client,
        pytest.raises(dmesr.ServerUnavailable, match=peer.address) as caught,
    ):
        client.admin.list_catalogs()
    assert (flaky.calls, caught.value.target) == (4, peer.address)


def test_a_call_that_is_not_idempotent_is_made_once(peer: Peer):
    flaky = Flaky(1)
    peer.answer(CREATE, flaky)
    with dmesr.connect(peer.address, retry=FAST) as client, pytest.raises(dmesr.ServerUnavailable):
        client.admin.create_catalog("films")
    assert flaky.calls == 1


def test_another_error_is_not_tried_again(peer: Peer):
    calls = []

    def refused(request: object, context: grpc.ServicerContext) -> None:
        calls.append(request)
        refuse(context, grpc.StatusCode.INTERNAL, "INTERNAL", "a fault of the server, logged as 7f3", incident="7f3")

    peer.answer(LIST, refused)
    with dmesr.connect(peer.address, retry=FAST) as client, pytest.raises(dmesr.Internal, match="7f3"):
        client.admin.list_catalogs()
    assert len(calls) == 1


def test_pauses_grow_to_their_bound():
    policy = dmesr.RetryPolicy(initial_pause_seconds=0.1, multiplier=2.0, max_pause_seconds=0.3)
    for failed, whole in ((1, 0.1), (2, 0.2), (3, 0.3), (9, 0.3)):
        assert all(whole / 2 <= policy.pause_seconds(failed) <= whole for _ in range(20))


class Busy:
    """Refuses a number of calls for want of room, then hands on to a handler."""

    def __init__(self, refusals: int, handler: Callable[..., Any], *, retry_seconds: float = 0.01) -> None:
        self.refusals = refusals
        self.handler = handler
        self.retry_seconds = retry_seconds
        self.calls = 0

    def __call__(self, request: object, context: grpc.ServicerContext) -> Any:
        self.calls += 1
        if self.calls <= self.refusals:
            code = grpc.StatusCode.RESOURCE_EXHAUSTED
            refuse(context, code, "OVERLOADED", "hands full", retry_seconds=self.retry_seconds, kind="reads")
        return self.handler(request, context)


def test_what_a_busy_server_did_not_begin_is_asked_again(peer: Peer):
    # Creating twice would fail; nothing of a refused call has begun.
    created = admin_pb2.CreateCatalogResponse(catalog=admin_pb2.Catalog(name="films"))
    busy = Busy(3, lambda *_: created)
    peer.answer(CREATE, busy)
    with dmesr.connect(peer.address, retry=FAST) as client:
        assert client.admin.create_catalog("films").name == "films"
    assert busy.calls == 4


async def test_the_attempts_at_a_busy_server_are_bounded(peer: Peer):
    busy = Busy(99, lambda *_: admin_pb2.ListCatalogsResponse())
    peer.answer(LIST, busy)
    async with dmesr.aio.connect(peer.address, retry=FAST) as client:
        with pytest.raises(dmesr.Overloaded, match="hands full") as caught:
            await client.admin.list_catalogs()
    assert (busy.calls, caught.value.retry_seconds, caught.value.metadata) == (4, 0.01, {"kind": "reads"})
    assert isinstance(caught.value, dmesr.ResourceExhausted)


@pytest.mark.parametrize(("seconds", "policy"), [(0.5, FAST), (60.0, dmesr.RetryPolicy(max_hint_seconds=1.0))])
def test_a_hint_beyond_the_deadline_or_the_policy_is_not_waited_for(
    peer: Peer, seconds: float, policy: dmesr.RetryPolicy
):
    busy = Busy(99, lambda *_: admin_pb2.ListCatalogsResponse(), retry_seconds=5.0)
    peer.answer(LIST, busy)
    timeout = dmesr.Timeout(unary_seconds=seconds)
    with dmesr.connect(peer.address, retry=policy, timeout=timeout) as client, pytest.raises(dmesr.Overloaded):
        client.admin.list_catalogs()
    assert busy.calls == 1


def test_a_hint_is_kept_to_and_spread():
    policy = dmesr.RetryPolicy(attempts=3)
    busy = dmesr.Overloaded("hands full", retry_seconds=4.0)
    pauses = [policy.next_pause(1, busy) or 0.0 for _ in range(50)]
    assert all(4.0 <= pause <= 6.0 for pause in pauses)
    assert max(pauses) - min(pauses) > 0.5
    assert policy.next_pause(3, busy) is None
    assert (policy.next_pause(1, dmesr.ServerUnavailable("gone")) or 0.0) <= 0.1


def test_a_download_that_is_not_begun_is_asked_for_again(peer: Peer):
    busy = Busy(2, lambda *_: iter([items_pb2.GetPictureResponse(data=b"ab")]))
    peer.answer(GET_PICTURE, lambda request, context: (yield from busy(request, context)), "unary_stream")
    with dmesr.connect(peer.address, retry=FAST) as client:
        assert client.items.picture("0" * 64) == b"ab"
    assert busy.calls == 3


def inserted(
    requests: Iterator[items_pb2.UpsertItemsRequest], context: grpc.ServicerContext
) -> Iterator[items_pb2.UpsertItemsResponse]:
    for request in requests:
        results = [
            items_pb2.RowResult(item_id=item.item_id, outcome=items_pb2.ROW_OUTCOME_INSERTED) for item in request.items
        ]
        yield items_pb2.UpsertItemsResponse(results=results)


@pytest.mark.parametrize("count", [0, 1, 10, 11, 100])
def test_an_upsert_that_is_not_begun_is_sent_again_from_its_start(peer: Peer, count: int):
    with_limits(peer)
    seen: list[str] = []

    def noted(requests: Iterator[items_pb2.UpsertItemsRequest], context: grpc.ServicerContext) -> Any:
        for answer in inserted(requests, context):
            seen.extend(result.item_id for result in answer.results)
            yield answer

    busy = Busy(3, noted)
    peer.answer(UPSERT, lambda requests, context: (yield from busy(requests, context)), "stream_stream")
    with dmesr.connect(peer.address, retry=FAST) as client:
        summary = client.items.upsert((dmesr.Item(str(number)) for number in range(count)), batch_size=10)
    assert (summary.inserted, busy.calls) == (count, 4)
    assert seen == [str(number) for number in range(count)]


def test_an_upsert_whose_source_is_slow_is_sent_again_too(peer: Peer):
    with_limits(peer)
    busy = Busy(2, inserted)
    peer.answer(UPSERT, lambda requests, context: (yield from busy(requests, context)), "stream_stream")

    def slow() -> Iterator[dmesr.Item]:
        for number in range(30):
            # The second batch is asked for while the first is refused, and comes when the call was made again.
            while number == 10 and busy.calls < 3:
                time.sleep(0.001)
            yield dmesr.Item(str(number))

    with dmesr.connect(peer.address, retry=FAST) as client:
        assert client.items.upsert(slow(), batch_size=10).inserted == 30


def test_an_upsert_that_was_answered_is_not_sent_again(peer: Peer):
    with_limits(peer)
    busy = Busy(0, inserted)

    def breaking(requests: Iterator[items_pb2.UpsertItemsRequest], context: grpc.ServicerContext) -> Any:
        yield next(inserted(requests, context))
        busy.calls += 1
        refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", "hands full", retry_seconds=0.01)

    peer.answer(UPSERT, breaking, "stream_stream")
    with dmesr.connect(peer.address, retry=FAST) as client, pytest.raises(dmesr.Overloaded):
        client.items.upsert([dmesr.Item(str(number)) for number in range(30)], batch_size=10)
    assert busy.calls == 1


def test_a_deadline_holds_for_all_attempts_together(peer: Peer):
    release = threading.Event()
    peer.answer(LIST, lambda *_: release.wait(10) or admin_pb2.ListCatalogsResponse())
    with dmesr.connect(peer.address, timeout=dmesr.Timeout(unary_seconds=0.2)) as client:
        with pytest.raises(dmesr.DeadlineExceeded, match=r"within 0\.2 s") as caught:
            client.admin.list_catalogs()
        assert isinstance(caught.value, TimeoutError)
    release.set()


def test_a_silent_stream_ends(peer: Peer):
    release = threading.Event()

    def silent(request: object, context: grpc.ServicerContext) -> Iterator[items_pb2.GetPictureResponse]:
        yield items_pb2.GetPictureResponse(data=b"x")
        release.wait(10)

    peer.answer(GET_PICTURE, silent, "unary_stream")
    with (
        dmesr.connect(peer.address, timeout=dmesr.Timeout(stream_seconds=0.2)) as client,
        pytest.raises(dmesr.DeadlineExceeded, match=r"sent nothing for 0\.2 s"),
    ):
        client.items.picture("0" * 64)
    release.set()


def test_a_download_that_breaks_off_starts_anew(peer: Peer):
    calls = []

    def breaking(request: object, context: grpc.ServicerContext) -> Iterator[items_pb2.GetPictureResponse]:
        calls.append(request)
        yield items_pb2.GetPictureResponse(data=b"ab")
        if len(calls) == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
        yield items_pb2.GetPictureResponse(data=b"cd")

    peer.answer(GET_PICTURE, breaking, "unary_stream")
    with dmesr.connect(peer.address, retry=FAST) as client:
        assert client.items.picture("sha256:" + "0" * 64) == b"abcd"
    assert len(calls) == 2


def test_an_upsert_that_breaks_off_is_not_resumed(peer: Peer):
    with_limits(peer)
    calls = []

    def breaking(
        requests: Iterator[items_pb2.UpsertItemsRequest], context: grpc.ServicerContext
    ) -> Iterator[items_pb2.UpsertItemsResponse]:
        calls.append(1)
        request = next(requests)
        yield items_pb2.UpsertItemsResponse(
            results=[
                items_pb2.RowResult(item_id=item.item_id, outcome=items_pb2.ROW_OUTCOME_INSERTED)
                for item in request.items
            ]
        )
        context.abort(grpc.StatusCode.UNAVAILABLE, "draining")

    peer.answer(UPSERT, breaking, "stream_stream")
    seen: list[dmesr.UpsertSummary] = []
    with dmesr.connect(peer.address, retry=FAST) as client, pytest.raises(dmesr.ServerUnavailable):
        client.items.upsert((dmesr.Item(str(n)) for n in range(100)), batch_size=10, progress=seen.append)
    assert len(calls) == 1
    assert seen[0].inserted == 10


def test_a_server_that_answers_too_little_is_found_out(peer: Peer):
    with_limits(peer)
    peer.answer(UPSERT, lambda requests, context: iter(()), "stream_stream")
    with dmesr.connect(peer.address) as client, pytest.raises(dmesr.ApiError, match="do not match the requests"):
        client.items.upsert([dmesr.Item("1")])


def test_no_server_at_all_is_named_with_its_address():
    with dmesr.connect("127.0.0.1:1", retry=FAST) as client:
        with pytest.raises(dmesr.ServerUnavailable, match=r"127\.0\.0\.1:1 cannot be reached"):
            client.admin.list_catalogs()
        with pytest.raises(dmesr.ServerUnavailable):
            client.items.upsert([dmesr.Item("1")])


async def test_a_network_whose_packets_take_their_time_is_no_server_that_is_away(peer: Peer):
    """No answer of the server comes sooner than 0.7 s, its first word of the connection neither."""
    flaky = Flaky(0)
    peer.answer(LIST, flaky)
    host, port = peer.address.rsplit(":", 1)

    async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter, seconds: float) -> None:
        while data := await source.read(65_536):
            await asyncio.sleep(seconds)
            sink.write(data)
        sink.close()
        await sink.wait_closed()

    carried: list[asyncio.Task[None]] = []

    async def far(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        near_reader, near_writer = await asyncio.open_connection(host, int(port))
        carried.append(asyncio.create_task(carry(reader, near_writer, 0.0)))
        carried.append(asyncio.create_task(carry(near_reader, writer, 0.7)))

    server = await asyncio.start_server(far, "127.0.0.1", 0)
    async with server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with dmesr.aio.connect(address, retry=dmesr.RetryPolicy(attempts=1)) as client:
            assert [catalog.name for catalog in await client.admin.list_catalogs()] == ["films"]
        await asyncio.gather(*carried, return_exceptions=True)


def test_the_token_travels_with_every_call(peer: Peer):
    seen = []

    def listed(request: object, context: grpc.ServicerContext) -> admin_pb2.ListCatalogsResponse:
        seen.append(dict(context.invocation_metadata()).get("authorization"))
        return admin_pb2.ListCatalogsResponse()

    peer.answer(LIST, listed)
    with dmesr.connect(peer.address, token="s3cret") as client:
        client.admin.list_catalogs()
    with dmesr.connect(peer.address) as client:
        client.admin.list_catalogs()
    assert seen == ["Bearer s3cret", None]


def test_a_closed_client_says_so(peer: Peer):
    client = dmesr.connect(peer.address)
    bound = client.catalog("films")
    client.close()
    client.close()
    for closed in (client, bound):
        with pytest.raises(dmesr.ClientClosed, match="connect again"):
            closed.items.get("1")


def test_closing_ends_the_calls_under_way(peer: Peer):
    arrived, release = threading.Event(), threading.Event()

    def waiting(*_: object) -> admin_pb2.ListCatalogsResponse:
        arrived.set()
        release.wait(10)
        return admin_pb2.ListCatalogsResponse()

    peer.answer(LIST, waiting)
    client = dmesr.connect(peer.address)
    caught: list[BaseException] = []

    def call() -> None:
        try:
            client.admin.list_catalogs()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert arrived.wait(10)
    client.close()
    thread.join(10)
    release.set()
    assert [type(error) for error in caught] == [dmesr.ClientClosed]


def test_an_async_client_outlives_its_first_event_loop(peer: Peer):
    peer.answer(LIST, Flaky(0))
    client = dmesr.aio.connect(peer.address)

    async def names() -> list[str]:
        return [catalog.name for catalog in await client.admin.list_catalogs()]

    assert asyncio.run(names()) == ["films"]
    assert asyncio.run(names()) == ["films"]
    asyncio.run(client.close())


def test_channels_are_several_connections(peer: Peer):
    peers = set()

    def listed(request: object, context: grpc.ServicerContext) -> admin_pb2.ListCatalogsResponse:
        peers.add(context.peer())
        return admin_pb2.ListCatalogsResponse()

    peer.answer(LIST, listed)
    with dmesr.connect(peer.address, channels=3) as client:
        for _ in range(6):
            client.admin.list_catalogs()
    assert len(peers) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": ""}, "HOST:PORT"),
        ({"target": "http://localhost:50051"}, "HOST:PORT"),
        ({"channels": 0}, "channels is 0"),
        ({"catalog": ""}, "catalog is ''"),
        ({"tls": dmesr.TLS(root_certificates=Path("no/such.pem"))}, r"no/such\.pem"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_at_once(arguments: dict[str, object], message: str):
    with pytest.raises(dmesr.InvalidInput, match=message):
        dmesr.connect(**arguments)  # type: ignore[arg-type]


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(dmesr.InvalidInput, match="unary_seconds"):
        dmesr.Timeout(unary_seconds=0)
    with pytest.raises(dmesr.InvalidInput, match="attempts"):
        dmesr.RetryPolicy(attempts=0)
    with pytest.raises(dmesr.InvalidInput, match="go together"):
        dmesr.TLS(client_key=Path("key.pem"))


def test_a_process_that_forgets_to_close_ends_in_silence(peer: Peer):
    peer.answer(LIST, Flaky(0))
    code = f"import dmesr; client = dmesr.connect({peer.address!r}); print(client.admin.list_catalogs()[0].name)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr, done.returncode) == ("films\n", "", 0)
