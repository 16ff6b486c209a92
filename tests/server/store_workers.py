"""What tests of the store and the control database run in other processes: spawned, as LanceDB outlives no fork."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import numpy as np
from dmesr_server.control import Control
from dmesr_server.store import ItemWrite, SourceColumn, Store


def in_threads(act: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    with ThreadPoolExecutor(len(arguments)) as pool:
        return [future.result() for future in [pool.submit(act, *each) for each in arguments]]


@functools.cache
def _pool() -> ProcessPoolExecutor:
    """Three processes for all tests: each takes seconds to import what it needs. They end with the tests."""
    return ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn"))


def in_processes(act: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    assert len(arguments) <= 3
    return [future.result() for future in [_pool().submit(act, *each) for each in arguments]]


def column(vectors: Any, hashes: Sequence[str | None], present: Any = None) -> SourceColumn:
    vectors_ND = np.asarray(vectors, np.float32)
    present_N = np.ones(len(vectors_ND), bool) if present is None else np.asarray(present, bool)
    return SourceColumn(vectors_ND, present_N, list(hashes))


def upsert_items(uri: str, ids: list[str], title: str) -> list[str]:
    store = Store(uri=uri)
    return store.catalog("films").items.upsert([ItemWrite(item_id, (("title", (title,)),), None) for item_id in ids])


def upsert_source(uri: str, ids: list[str], source: str, rounds: int) -> None:
    """Writes its own source of the same items, round after round; the last vector of each is [rounds - 1] * 16."""
    table = Store(uri=uri).catalog("films").embeddings("r1")
    table.declare(source, 16)
    for number in range(rounds):
        vectors = np.full((len(ids), 16), number, np.float32)
        table.upsert(ids, {source: column(vectors, [f"{source}-{number}"] * len(ids))})


def upsert_for_ever(uri: str, ids: list[str]) -> None:
    """Writes items and vectors, ten at a time, until it is killed."""
    catalog = Store(uri=uri).catalog("films")
    table = catalog.embeddings("r1")
    table.declare("text", 16)
    for number in itertools.count():
        part = [ids[(10 * number + each) % len(ids)] for each in range(10)]
        catalog.items.upsert([ItemWrite(item_id, (("title", (str(number),)),), None) for item_id in part])
        table.upsert(part, {"text": column(np.full((10, 16), number), [str(number)] * 10)})


def claim_all(url: str, owner: str) -> list[str]:
    """Claims and finishes jobs until none is left."""
    control = Control(url)
    claimed = []
    while (work := control.jobs.claim(owner, 30.0)) is not None:
        claimed.append(work.job.job_id)
        control.jobs.finish(work.job.job_id, work.lease, "SUCCEEDED", None, {})
    control.close()
    return claimed


def migrate(url: str) -> list[str]:
    control = Control(url)
    control.migrate()
    control.catalogs.ensure_default()
    names = [row.name for row in control.catalogs.list()]
    control.close()
    return names


def publish(url: str, prefix: str, count: int) -> list[int]:
    control = Control(url)
    versions = [
        control.models.create("default", "dmesr", f"{prefix}-{number}", "r1", "{}", "/a").version
        for number in range(count)
    ]
    control.close()
    return versions


def upsert_new_in_batches(uri: str, ids: list[str], who: int) -> list[str]:
    """Writes items that nobody has yet, and a vector of each, five at a time; what became of each item."""
    catalog = Store(uri=uri).catalog("films")
    table = catalog.embeddings("r1")
    outcomes = []
    for start in range(0, len(ids), 5):
        part = ids[start : start + 5]
        outcomes += catalog.items.upsert([ItemWrite(item_id, (("by", (str(who),)),), None) for item_id in part])
        table.upsert(part, {"text": column(np.full((len(part), 16), who), [f"{item_id}-{who}" for item_id in part])})
    return outcomes
