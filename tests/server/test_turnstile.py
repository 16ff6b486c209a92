"""Turns, lines and hints; and that a call keeps its place for as long as a thread works for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from dmesr_server.abandoned import AbandonedError, still_wanted
from dmesr_server.api.turnstile import Turnstile
from dmesr_server.api.working import Call, in_thread
from dmesr_server.errors import ServiceError


def turnstile(*, running: int = 1, waiting: int = 1, wait_seconds: float = 60) -> Turnstile:
    return Turnstile("reads", running=running, waiting=waiting, wait_seconds=wait_seconds)


async def until(condition: Callable[[], bool]) -> None:
    """Lets others go on until something has come about."""
    while not condition():  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(0.001)


async def in_line(one: Turnstile, *, waiting: int) -> None:
    await until(lambda: one.waiting == waiting)


async def test_who_comes_first_is_let_in_first():
    one = turnstile(waiting=3)
    await one.enter()
    came: list[int] = []

    async def come(number: int) -> None:
        await one.enter()
        came.append(number)

    tasks = [asyncio.create_task(come(number)) for number in range(3)]
    await in_line(one, waiting=3)
    for _ in range(4):
        one.leave(seconds=0.01)
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert came == [0, 1, 2]
    assert (one.running, one.waiting) == (0, 0)


async def test_beyond_the_line_calls_are_refused_with_a_hint():
    refusals: list[int] = []
    one = Turnstile("reads", running=2, waiting=1, wait_seconds=60, refused=lambda: refusals.append(1))
    await one.enter()
    one.leave(seconds=4.0)
    await one.enter()
    await one.enter()
    waiting = asyncio.create_task(one.enter())
    await in_line(one, waiting=1)
    with pytest.raises(ServiceError, match="'reads' are under way and 1 wait") as caught:
        await one.enter()
    # Two turns of 4 s, two at a time.
    assert (caught.value.reason, caught.value.retry_seconds) == ("OVERLOADED", 4.0)
    assert caught.value.metadata == {"kind": "reads", "running": "2", "waiting": "1"}
    assert refusals == [1]
    one.leave(seconds=4.0)
    await waiting


async def test_nobody_waits_for_ever():
    one = turnstile(wait_seconds=0.01)
    await one.enter()
    with pytest.raises(ServiceError, match="in vain"):
        await one.enter()
    one.leave(seconds=1)
    assert (one.running, one.waiting) == (0, 0)


async def test_who_leaves_the_line_takes_no_turn():
    one = turnstile(waiting=2)
    await one.enter()
    gone, stays = asyncio.create_task(one.enter()), asyncio.create_task(one.enter())
    await in_line(one, waiting=2)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert one.waiting == 1
    one.leave(seconds=1)
    await stays
    assert (one.running, one.waiting) == (1, 0)


async def test_a_turn_that_comes_with_the_cancellation_goes_to_the_next():
    one = turnstile(waiting=2)
    await one.enter()
    gone, stays = asyncio.create_task(one.enter()), asyncio.create_task(one.enter())
    await in_line(one, waiting=2)
    one.leave(seconds=1)  # the first in line has it now, and does not know yet
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    await stays
    one.leave(seconds=1)
    assert (one.running, one.waiting) == (0, 0)


async def test_streams_wait_for_threads_however_many_wait():
    one = turnstile(waiting=0)
    await one.enter()
    patient = [asyncio.create_task(one.enter(patient=True)) for _ in range(5)]
    await in_line(one, waiting=5)
    for _ in range(6):
        one.leave(seconds=1)
        await asyncio.sleep(0)
    await asyncio.gather(*patient)
    assert one.running == 0


async def test_a_cancelled_call_keeps_its_place_while_its_thread_works():
    place = turnstile()
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait()

    async def call() -> None:
        async with Call(place, None):
            await in_thread(work)

    task = asyncio.create_task(call())
    await asyncio.to_thread(begun.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert place.running == 1
    go_on.set()
    await until(lambda: place.running == 0)


async def test_work_ends_where_it_asks_and_nobody_waits():
    begun, go_on = threading.Event(), threading.Event()
    ended: list[type[BaseException] | None] = []

    def work() -> None:
        begun.set()
        go_on.wait()
        try:
            still_wanted()
        except AbandonedError as error:
            ended.append(type(error))
            raise
        ended.append(None)

    async def call() -> None:
        async with Call(turnstile(), None):
            await in_thread(work)

    task = asyncio.create_task(call())
    await asyncio.to_thread(begun.wait)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    go_on.set()
    await until(lambda: bool(ended))
    assert ended == [AbandonedError]

    begun.clear()
    await call()
    assert ended == [AbandonedError, None]


async def test_work_of_a_call_that_has_gone_is_not_begun():
    threads = turnstile()
    await threads.enter()  # all threads are taken
    place = turnstile()
    worked: list[int] = []

    async def call() -> None:
        async with Call(place, threads):
            await in_thread(worked.append, 1)

    task = asyncio.create_task(call())
    await in_line(threads, waiting=1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    threads.leave(seconds=1)
    assert (worked, place.running, threads.running, threads.waiting) == ([], 0, 0, 0)
