from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence

import pytest
from dmesr_server.enrichment.picture_reads import PICTURES_PER_READ, PictureReads
from dmesr_server.errors import ServiceError
from dmesr_server.store import Picture


class Shelf:
    """Forty pictures that can be held back; writes down what is asked for at a time."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.free = threading.Event()
        self.free.set()
        self.broken: set[str] = set()

    def read(self, sha256s: Sequence[str]) -> Mapping[str, Picture]:
        self.asked.append(list(sha256s))
        assert self.free.wait(10)
        if self.broken & set(sha256s):
            raise ServiceError("STORE_UNAVAILABLE", "the disk has gone")
        return {each: Picture(each, each.encode(), "image/png", 1, 1) for each in sha256s if int(each) < 40}


async def until(shelf: Shelf, reads: int) -> None:
    async with asyncio.timeout(10):
        while len(shelf.asked) < reads:  # noqa: ASYNC110 - a thread tells
            await asyncio.sleep(0.001)


async def test_callers_side_by_side_share_reads() -> None:
    shelf = Shelf()
    reads = PictureReads(shelf.read)
    answers = await asyncio.gather(*(reads.get([str(number), "99"]) for number in range(40)))
    assert [list(answer) for answer in answers] == [[str(number)] for number in range(40)]  # 99 is not there
    assert [answer[str(number)].data for number, answer in enumerate(answers)] == [
        str(number).encode() for number in range(40)
    ]
    assert len(shelf.asked) == 6  # 40 and the missing one, eight at a time
    assert max(map(len, shelf.asked)) == PICTURES_PER_READ
    assert (await reads.get(["7"]))["7"].data == b"7"


async def test_what_is_asked_for_during_a_read_goes_into_the_next_one() -> None:
    shelf = Shelf()
    shelf.free.clear()
    reads = PictureReads(shelf.read)
    first = asyncio.create_task(reads.get(["1"]))
    await until(shelf, 1)
    later = [asyncio.create_task(reads.get([each])) for each in ("2", "3", "2")]
    await asyncio.sleep(0)
    shelf.free.set()
    await asyncio.gather(first, *later)
    assert shelf.asked == [["1"], ["2", "3"]]


async def test_a_read_that_fails_fails_those_who_wait_for_it_alone() -> None:
    shelf = Shelf()
    shelf.broken = {"0"}
    reads = PictureReads(shelf.read)
    answers = await asyncio.gather(*(reads.get([str(number)]) for number in range(10)), return_exceptions=True)
    assert [isinstance(answer, ServiceError) for answer in answers] == [True] * 8 + [False] * 2


async def test_a_caller_that_gives_up_leaves_the_others_alone() -> None:
    shelf = Shelf()
    shelf.free.clear()
    reads = PictureReads(shelf.read)
    first = asyncio.create_task(reads.get(["1"]))
    await until(shelf, 1)
    impatient, patient = asyncio.create_task(reads.get(["2", "3"])), asyncio.create_task(reads.get(["2"]))
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    shelf.free.set()
    assert list(await first) == ["1"]
    assert list(await patient) == ["2"]
    assert shelf.asked == [["1"], ["2"]]  # nobody waits for 3 any more
