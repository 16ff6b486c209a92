"""The sync face: what runs on which thread, and that nothing the user's code does can hold up the event loop."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator

import dmesr
import dmesr.aio
import pytest
from dmesr.admin import LIST
from dmesr.bridge import event_loop_thread, in_chunks, notify
from dmesr.items import LIST as LIST_ITEMS
from dmesr.items import UPSERT
from dmesr.v1 import admin_pb2, items_pb2

from .peer import Peer
from .test_transport import with_limits


def upserting(peer: Peer) -> list[int]:
    """Lets the peer take every item; returns the sizes of the batches as they come."""
    with_limits(peer)
    sizes: list[int] = []

    def upsert(
        requests: Iterator[items_pb2.UpsertItemsRequest], context: object
    ) -> Iterator[items_pb2.UpsertItemsResponse]:
        for request in requests:
            sizes.append(len(request.items))
            yield items_pb2.UpsertItemsResponse(
                results=[
                    items_pb2.RowResult(item_id=item.item_id, outcome=items_pb2.ROW_OUTCOME_INSERTED)
                    for item in request.items
                ]
            )

    peer.answer(UPSERT, upsert, "stream_stream")
    return sizes


def test_generator_and_progress_run_in_the_calling_thread(peer: Peer):
    upserting(peer)
    threads = set()

    def items() -> Iterator[dmesr.Item]:
        for number in range(25):
            threads.add(threading.current_thread())
            yield dmesr.Item(str(number))

    with dmesr.connect(peer.address) as client:
        summary = client.items.upsert(
            items(), batch_size=10, progress=lambda _: threads.add(threading.current_thread())
        )
    assert summary.inserted == 25
    assert threads == {threading.current_thread()}


def test_a_blocking_generator_holds_up_no_other_call(peer: Peer):
    upserting(peer)
    peer.answer(LIST, lambda *_: admin_pb2.ListCatalogsResponse())
    entered, release = threading.Event(), threading.Event()

    def items() -> Iterator[dmesr.Item]:
        entered.set()
        assert release.wait(10)
        yield dmesr.Item("1")

    with dmesr.connect(peer.address) as client:
        thread = threading.Thread(target=client.items.upsert, args=(items(),))
        thread.start()
        assert entered.wait(10)
        assert client.admin.list_catalogs() == []
        release.set()
        thread.join(10)
        assert not thread.is_alive()


def test_a_generator_may_use_the_client_itself(peer: Peer):
    upserting(peer)
    pages = {"": (["1", "2"], "next"), "next": (["3"], "")}

    def listed(request: items_pb2.ListItemsRequest, context: object) -> items_pb2.ListItemsResponse:
        ids, token = pages[request.page_token]
        return items_pb2.ListItemsResponse(
            items=[items_pb2.Item(item_id=item_id) for item_id in ids], next_page_token=token
        )

    peer.answer(LIST_ITEMS, listed)
    with dmesr.connect(peer.address) as client:
        assert client.items.upsert(item for item in client.items.list()).inserted == 3


def test_the_errors_of_the_users_code_come_back_as_they_are(peer: Peer):
    sizes = upserting(peer)

    def items() -> Iterator[dmesr.Item]:
        for number in range(15):
            yield dmesr.Item(str(number))
        raise KeyError("row 15")

    with dmesr.connect(peer.address) as client:
        with pytest.raises(KeyError, match="row 15"):
            client.items.upsert(items(), batch_size=10)
        assert sizes == [10]
        with pytest.raises(ZeroDivisionError):
            client.items.upsert([dmesr.Item("1")], progress=lambda _: 1 / 0)
        assert client.items.upsert([dmesr.Item("1")]).inserted == 1


def test_an_upsert_reads_no_further_ahead_than_a_few_batches(peer: Peer):
    with_limits(peer)
    release = threading.Event()

    def stuck(requests: Iterator[object], context: object) -> Iterator[items_pb2.UpsertItemsResponse]:
        for _ in requests:
            release.wait(10)
            yield items_pb2.UpsertItemsResponse()

    peer.answer(UPSERT, stuck, "stream_stream")
    taken = 0

    def items() -> Iterator[dmesr.Item]:
        nonlocal taken
        for number in range(10_000):
            taken += 1
            yield dmesr.Item(str(number))

    with dmesr.connect(peer.address) as client:
        thread = threading.Thread(target=client.items.upsert, args=(items(),), kwargs={"batch_size": 10})
        thread.start()
        before = -1
        while taken != before:
            before = taken
            time.sleep(0.1)
        assert 0 < taken <= 10 * (16 + 2)  # 16 batches may be unanswered; one more waits, and one is being filled
        release.set()
        thread.join(30)
    assert taken == 10_000


def test_an_iteration_that_is_left_early_ends(peer: Peer):
    asked = []

    def listed(request: items_pb2.ListItemsRequest, context: object) -> items_pb2.ListItemsResponse:
        asked.append(request.page_token)
        return items_pb2.ListItemsResponse(
            items=[items_pb2.Item(item_id=str(len(asked)))], next_page_token=str(len(asked))
        )

    peer.answer(LIST_ITEMS, listed)
    with dmesr.connect(peer.address) as client:
        listing = client.items.list(page_size=1)
        assert [next(listing).item_id, next(listing).item_id] == ["1", "2"]
        listing.close()
        time.sleep(0.1)
        assert len(asked) <= 4  # one page ahead, and one under way


def test_works_within_a_running_event_loop(peer: Peer):
    """As in Jupyter, where every cell runs inside one."""
    peer.answer(LIST, lambda *_: admin_pb2.ListCatalogsResponse())

    async def cell() -> list[dmesr.Catalog]:
        with dmesr.connect(peer.address) as client:
            return client.admin.list_catalogs()

    assert asyncio.run(cell()) == []


def test_a_client_of_many_threads_shares_one_loop(peer: Peer):
    peer.answer(LIST, lambda *_: admin_pb2.ListCatalogsResponse())
    results = []
    with dmesr.connect(peer.address) as client:
        threads = [threading.Thread(target=lambda: results.append(client.admin.list_catalogs())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert results == [[]] * 8
    assert [thread.name for thread in threading.enumerate()].count("dmesr-event-loop") == 1


def test_the_loop_cannot_wait_for_itself():
    loop = event_loop_thread()

    async def inner() -> None:
        return None

    async def outer() -> None:
        loop.run(inner())

    with pytest.raises(dmesr.DmesrError, match="deadlock"):
        loop.run(outer())


def test_a_forked_child_is_told_to_connect_again(peer: Peer):
    code = f"""
import os, dmesr
client = dmesr.connect({peer.address!r})
if (child := os.fork()) == 0:
    try:
        client.admin.list_catalogs()
    except dmesr.DmesrError as error:
        os._exit(0 if "connect again" in str(error) else 2)
    os._exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "0\n", done.stderr


def test_ctrl_c_ends_a_waiting_call(peer: Peer):
    arrived, release = threading.Event(), threading.Event()

    def waiting(*_: object) -> admin_pb2.ListCatalogsResponse:
        arrived.set()
        release.wait(20)
        return admin_pb2.ListCatalogsResponse()

    peer.answer(LIST, waiting)
    code = f"""
import dmesr
try:
    with dmesr.connect({peer.address!r}) as client:
        client.admin.list_catalogs()
except KeyboardInterrupt:
    print("stopped")
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert arrived.wait(10)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    release.set()
    assert (out, err) == ("stopped\n", "")


async def test_the_async_face_takes_async_generators_and_lists(peer: Peer):
    upserting(peer)
    threads = set()

    async def items() -> AsyncIterator[dmesr.Item]:
        for number in range(25):
            threads.add(threading.current_thread())
            await asyncio.sleep(0)
            yield dmesr.Item(str(number))

    progress: list[int] = []
    async with dmesr.aio.connect(peer.address) as client:
        summary = await client.items.upsert(items(), batch_size=10, progress=lambda s: progress.append(s.inserted))
        assert (await client.items.upsert([dmesr.Item("1")])).inserted == 1
        assert (await client.items.upsert(dmesr.Item(str(n)) for n in range(3))).inserted == 3
    assert summary.inserted == 25
    assert progress == [10, 20, 25]
    assert threads == {threading.current_thread()}


async def test_chunks_of_every_kind_of_iterable():
    async def numbers() -> AsyncIterator[int]:
        for number in range(5):
            yield number

    for source in (range(5), list(range(5)), iter(range(5)), numbers()):
        assert [chunk async for chunk in in_chunks(source, 2)] == [[0, 1], [2, 3], [4]]
    assert [chunk async for chunk in in_chunks([], 2)] == []


async def test_a_callback_of_the_async_face_runs_in_its_loop():
    called = []
    await notify(lambda value: called.append((value, threading.current_thread())), 1)
    assert called == [(1, threading.current_thread())]
