"""`kill -9` at any moment: what was acknowledged is there, nothing is there twice or half, and work goes on.

`DMESR_CHAOS_KILLS` says how many kills (`make test-chaos`: 100); `DMESR_CHAOS_SEED` which. A thread does one kind of
work after another on a real server and notes what was acknowledged; the test kills the API process, or the enricher, a
random moment after the work has begun, starts the server again and looks at everything that the store holds.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import dmesr
import numpy as np
import pytest
import tiny_artefact
from running_server import RunningServer

KILLS = int(os.environ.get("DMESR_CHAOS_KILLS", "10"))
SEED = int(os.environ.get("DMESR_CHAOS_SEED", "0"))
IDS = [f"i{number:04d}" for number in range(320)]
#: Tables of so few rows get indexes, so that index builds are killed too.
CONFIG = {"store__index_threshold_rows": 256, "store__index_poll_seconds": 0.5}


class Work:
    """Kinds of work, and what may be found after each of them.

    Every write carries a number of its own: the title of an item, and every place of a vector. What may be found for an
    id is what was acknowledged last, or a later write whose answer never came. None stands for nothing.
    """

    def __init__(self, folder: Path, seed: int):
        self.rng = random.Random(seed)
        self.titles: dict[str, set[int | None]] = {item_id: {None} for item_id in IDS}
        self.vectors: dict[str, set[int | None]] = {item_id: {None} for item_id in IDS}
        self.aliased: set[str | None] = {None}
        self.jobs: set[str] = set()
        self.begun, self.enough = threading.Event(), threading.Event()
        self._folder = folder
        self._numbers = iter(range(1, 10**9))
        self._recipe_id = ""

    def prepare(self, client: dmesr.Client) -> None:
        """Every item is there, with vectors, and a model is published and promoted."""
        self.upsert(client, IDS)
        self.write(client, IDS)
        (self._recipe_id,) = (recipe.recipe_id for recipe in client.embeddings.recipes() if "ours" in recipe.names)
        self.publish(client)
        assert self.aliased == {"tiny:1"}

    def do(self, kind: str, client: dmesr.Client) -> None:
        """One piece of work."""
        some = self.rng.sample(IDS, self.rng.randint(1, 120))
        {
            "import": lambda: self.upsert(client, some),
            "delete": lambda: self.delete(client, some[:20]),
            "write": lambda: self.write(client, some),
            "enrich": lambda: self.enrich(client),
            "publish": lambda: self.publish(client),
            "compact": lambda: self.compact(client),
        }[kind]()

    def upsert(self, client: dmesr.Client, ids: list[str]) -> None:
        number = next(self._numbers)
        with _noted(self.titles, ids, number):
            self.begun.set()
            summary = client.items.upsert(dmesr.Item(item_id, {"title": f"Film {number}"}) for item_id in ids)
            assert not summary.rejected, summary.rejected

    def delete(self, client: dmesr.Client, ids: list[str]) -> None:
        with _noted(self.titles, ids, None), _noted(self.vectors, ids, None):
            self.begun.set()
            client.items.delete(ids)

    def write(self, client: dmesr.Client, ids: list[str]) -> None:
        """Of items that are there; others are refused."""
        ids = [item_id for item_id in ids if None not in self.titles[item_id]]
        number = next(self._numbers)
        matrices = {
            source: np.full((len(ids), width), number, np.float32) for source, width in tiny_artefact.DIMS.items()
        }
        with _noted(self.vectors, ids, number):
            self.begun.set()
            summary = client.embeddings.write(recipe="ours", item_ids=ids, vectors=matrices, create_recipe=True)
            assert not summary.rejected, summary.rejected

    def enrich(self, client: dmesr.Client) -> None:
        job = client.enrichment.start()
        self.jobs.add(job.job_id)
        patience = time.monotonic() + 8  # where nothing is left to be done, no item is ever counted
        while not job.state.ended and not self.enough.is_set():
            if job.items_done or time.monotonic() > patience:
                self.begun.set()
            time.sleep(0.02)
            job = job.refresh()
        self.begun.set()

    def publish(self, client: dmesr.Client) -> None:
        number = next(self._numbers)
        folder = tiny_artefact.write(
            self._folder / f"artefact-{number}", recipe_id=self._recipe_id, items={IDS[0]: (number, None)}
        )
        self.begun.set()
        model = client.models.publish(folder, name="tiny")
        self.aliased.add(model.ref)
        client.models.promote(model.ref)
        self.aliased = {model.ref}

    def compact(self, client: dmesr.Client) -> None:
        self.begun.set()
        client.admin.compact_store()

    def check(self, client: dmesr.Client) -> None:
        """Looks at everything. What is found is from now on what has to be there."""
        items = list(client.items.list())
        assert _most(item.item_id for item in items) <= 1, "an item twice"
        found = {item.item_id: int(item.title.removeprefix("Film ")) for item in items}
        _settle(self.titles, found, "item")

        read = client.embeddings.read(recipe="ours")
        assert _most(read.ids) <= 1, "a row of vectors twice"
        written: dict[str, int] = {}
        for row, item_id in enumerate(read.ids):
            numbers = {float(value) for source in tiny_artefact.DIMS for value in read.matrix(source)[row]}
            assert len(numbers) == 1, f"half a row of {item_id}: {numbers}"
            if numbers != {0.0}:
                written[item_id] = int(numbers.pop())
        _settle(self.vectors, written, "vectors of")

        (alias,) = client.models.aliases()
        assert alias.model in self.aliased
        self.aliased = {alias.model}
        model = client.models.get("production")
        assert (model.ref, model.state) == (alias.model, dmesr.ModelState.READY)
        known = [item_id for item_id in found if item_id in written]
        answer = client.recommend(history=known[:3], k=5)
        assert answer.model == alias.model
        assert _most(one.item_id for one in answer) <= 1


@contextlib.contextmanager
def _noted(kept: dict[str, set[int | None]], ids: list[str], number: int | None) -> Iterator[None]:
    """Until it is acknowledged both may be found, what was before and what is written."""
    for item_id in ids:
        kept[item_id].add(number)
    yield
    for item_id in ids:
        kept[item_id] = {number}


def _settle(kept: dict[str, set[int | None]], found: dict[str, int], what: str) -> None:
    assert found.keys() <= kept.keys()
    for item_id, allowed in kept.items():
        number = found.get(item_id)
        assert number in allowed, f"{what} {item_id}: found {number}, allowed {allowed}"
        kept[item_id] = {number}


def _most(ids: object) -> int:
    return max(Counter(ids).values(), default=0)  # type: ignore[call-overload]


def _working(work: Work, kind: str, address: str, faults: list[BaseException]) -> None:
    try:
        with dmesr.connect(address) as client:
            while not work.enough.is_set():
                work.do(kind, client)
    except dmesr.DmesrError as error:
        if not work.enough.is_set():
            faults.append(error)
    except BaseException as error:
        faults.append(error)


def _final(address: str) -> tuple[dict[tuple[str, str], str], dict[str, np.ndarray]]:
    """What a finished job has left: descriptions and vectors by item."""
    with dmesr.connect(address) as client:
        ended = client.enrichment.start().wait(timeout=180)
        assert ended.state is dmesr.JobState.SUCCEEDED
        texts = {(one.item_id, one.route): one.text for one in client.enrichment.list_descriptions()}
        read = client.embeddings.read(recipe="default")
        assert _most(read.ids) <= 1
        rows = zip(read.ids, read.matrix("original"), read.matrix("text"), strict=True)
        return texts, {item_id: np.concatenate([one, other]) for item_id, one, other in rows}


def test_whatever_is_killed_what_was_acknowledged_is_there(
    tmp_path: Path, start_server: Callable[..., RunningServer], record_property: Callable[[str, object], None]
):
    work = Work(tmp_path, SEED)
    server = start_server(**CONFIG)
    with dmesr.connect(server.address) as client:
        work.prepare(client)
        work.check(client)
    kinds = ["import", "write", "enrich", "publish", "compact", "delete"]
    survived: dict[str, Counter[str]] = defaultdict(Counter)
    for number in range(KILLS):
        kind = kinds[number % len(kinds)]
        victim = "enricher" if kind == "enrich" and number % 12 == 2 else "api"
        faults = list[BaseException]()
        work.begun.clear()
        work.enough.clear()
        worker = threading.Thread(target=_working, args=(work, kind, server.address, faults))
        worker.start()
        assert work.begun.wait(60), f"{kind} never began: {faults}"
        time.sleep(work.rng.uniform(0, 1.0))
        work.enough.set()
        if victim == "enricher":
            os.kill(server.enricher_pid, signal.SIGKILL)
        else:
            server.kill()
            server.start()  # before the worker gives up: its client may try again
        worker.join(120)
        assert not worker.is_alive(), f"{kind} hangs after its server has died"
        assert not faults, faults
        with dmesr.connect(server.address) as client:
            work.check(client)
        survived[victim][kind] += 1
    told = ", ".join(f"{victim} {dict(counts)}" for victim, counts in survived.items())
    record_property("survived", told)
    logging.getLogger(__name__).info("kills survived: %s", told)

    with dmesr.connect(server.address) as client:
        for job_id in work.jobs:
            assert client.enrichment.get(job_id).wait(timeout=180).state is dmesr.JobState.SUCCEEDED
        there = list(client.items.list())
    texts, vectors = _final(server.address)
    undisturbed = start_server()
    with dmesr.connect(undisturbed.address) as client:
        client.items.upsert(dmesr.Item(item.item_id, item.attributes) for item in there)
    expected_texts, expected = _final(undisturbed.address)
    assert texts == expected_texts
    assert vectors.keys() == expected.keys()
    for item_id, vector in vectors.items():
        # Which texts share a batch differs, and with it the last bits.
        assert vector == pytest.approx(expected[item_id], abs=1e-5)
