"""Rows are appended only where it is certain that none of their keys is there; else they are merged."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from dmesr_server.errors import ServiceError
from dmesr_server.store import Store, TableState, inserts
from dmesr_server.store.database import Database, new_session
from dmesr_server.store.inserts import Inserts
from dmesr_server.store.schemas import key_field
from dmesr_server.store.tables import Table
from store_workers import in_processes, in_threads, upsert_new_in_batches

SCHEMA = pa.schema([key_field("name"), pa.field("value", pa.int64())])


def opened(folder: Path, *, one_host: bool = True) -> Table:
    """The table as another process would have it: nothing is shared but the files."""
    database = Database(uri=str(folder), session=new_session(), one_host=one_host)
    return Table(database=database, name="things", schema=SCHEMA, indexed=["name"])


def rows(names: str, value: int = 0) -> pa.Table:
    return pa.table({"name": list(names), "value": [value] * len(names)}, schema=SCHEMA)


def stored(table: Table) -> list[tuple[str, int]]:
    found = table.select(["name", "value"]).to_pydict()
    return sorted(zip(found["name"], found["value"], strict=True))


@contextmanager
def held(folder: Path, kind: int) -> Iterator[None]:
    """What a process that was stopped in the middle of a write holds."""
    with (folder / ".things.lock").open("a") as file:
        fcntl.flock(file, kind)
        yield


def test_new_rows_are_appended_in_order_of_their_key(tmp_path):
    table = opened(tmp_path)
    assert not table.insert(rows("ca"), since=table.state()), "there was no table yet that a look could have seen"
    table.merge(rows("ca"))
    assert table.insert(rows("db", 1), since=table.state())
    assert table.select(["name"])["name"].to_pylist() == ["a", "c", "b", "d"]
    assert stored(opened(tmp_path)) == [("a", 0), ("b", 1), ("c", 0), ("d", 1)]


def test_what_another_process_wrote_since_the_look_forbids_it(tmp_path):
    table, other = opened(tmp_path), opened(tmp_path)
    table.merge(rows("a"))
    looked = table.state()
    other.merge(rows("b", 7))
    assert not table.insert(rows("b"), since=looked)
    assert not table.insert(rows("c"), since=looked), "nobody knows here which rows the other one wrote"
    assert stored(table) == [("a", 0), ("b", 7)]
    assert table.insert(rows("c"), since=table.state())


def test_ones_own_commits_of_other_keys_since_the_look_do_not(tmp_path):
    table = opened(tmp_path)
    table.merge(rows("a"))
    looked = table.state()
    table.merge(rows("b"))
    assert table.insert(rows("c"), since=looked)
    assert table.insert(rows("d"), since=looked)
    for name in "bcd":
        assert not table.insert(rows(name), since=looked), name
    assert [name for name, _ in stored(table)] == ["a", "b", "c", "d"]


def test_nor_does_a_look_at_a_table_that_was_made_since(tmp_path):
    table = opened(tmp_path)
    nothing = table.state()
    opened(tmp_path).merge(rows("a"))
    assert not table.insert(rows("a", 1), since=nothing)
    shutil.rmtree(tmp_path)  # as when its catalog is dropped
    opened(tmp_path).merge(rows("b"))
    assert not table.insert(rows("b", 1), since=nothing)
    assert stored(opened(tmp_path)) == [("b", 0)]


def test_where_several_hosts_write_nothing_is_appended(tmp_path):
    table = opened(tmp_path, one_host=False)
    table.merge(rows("a"))
    assert not table.insert(rows("b"), since=table.state())
    assert not list(tmp_path.glob(".*")), "nor do files keep anybody apart"


def test_a_compaction_since_the_look_costs_a_merge(tmp_path):
    table = opened(tmp_path)
    for name in "abc":
        table.merge(rows(name))
    looked = table.state()
    table.optimise()
    assert not table.insert(rows("d"), since=looked)
    table.merge(rows("d"))
    assert [name for name, _ in stored(table)] == ["a", "b", "c", "d"]


def test_who_is_stopped_in_a_merge_keeps_nobody_from_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(inserts, "_APPEND_WAITS_SECONDS", 0.05)
    table = opened(tmp_path)
    table.merge(rows("a"))
    with held(tmp_path, fcntl.LOCK_SH):
        assert not table.insert(rows("b"), since=table.state())
        table.merge(rows("b"))
    assert table.insert(rows("c"), since=table.state())
    assert [name for name, _ in stored(table)] == ["a", "b", "c"]


def test_who_is_stopped_while_it_appends_is_named_to_those_who_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(inserts, "_APPEND_WAITS_SECONDS", 0.05)
    monkeypatch.setattr(inserts, "_MERGE_WAITS_SECONDS", 0.2)
    table = opened(tmp_path)
    table.merge(rows("a"))
    with held(tmp_path, fcntl.LOCK_EX):
        assert not table.insert(rows("b"), since=table.state())
        with pytest.raises(ServiceError, match=r"things\.lock .* stopped or hangs: end it") as caught:
            table.merge(rows("b"))
        assert caught.value.reason == "STORE_UNAVAILABLE"
        assert stored(opened(tmp_path)) == [("a", 0)], "reading waits for nobody"
    table.merge(rows("b"))
    assert [name for name, _ in stored(table)] == ["a", "b"]


def test_a_merge_waits_for_an_append_to_end(tmp_path):
    table = opened(tmp_path)
    table.merge(rows("a"))
    descriptor = os.open(tmp_path / ".things.lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    threading.Timer(0.3, os.close, [descriptor]).start()
    started = time.monotonic()
    table.merge(rows("b"))
    assert time.monotonic() - started >= 0.25
    assert [name for name, _ in stored(table)] == ["a", "b"]


def test_the_file_of_a_catalog_that_was_dropped_holds_nobody(tmp_path):
    table = opened(tmp_path)
    table.merge(rows("a"))
    with held(tmp_path, fcntl.LOCK_EX):
        shutil.rmtree(tmp_path)
        opened(tmp_path).merge(rows("b"))
    assert stored(opened(tmp_path)) == [("b", 0)]


def test_of_its_own_commits_a_process_remembers_the_last_few():
    log = Inserts()
    states = [TableState(b"one", version) for version in range(1, 30)]
    log.note(["x"], before=states[0], after=states[0])  # a commit of nothing
    assert log.absent(["x"], since=states[0], now=states[0])
    for place, (before, after) in enumerate(itertools.pairwise(states)):
        log.note([str(place)], before=before, after=after)
    assert log.absent(["new"], since=states[-5], now=states[-1])
    assert not log.absent(["26"], since=states[-5], now=states[-1])
    assert log.absent(["20"], since=states[-5], now=states[-1]), "written before the look, which saw it"
    assert not log.absent(["new"], since=states[0], now=states[-1]), "too long ago"
    assert not log.absent(["new"], since=TableState(b"two", states[-5].version), now=states[-1])


@pytest.mark.parametrize("side_by_side", [in_threads, in_processes])
def test_writers_of_the_same_new_rows_leave_each_once(side_by_side, tmp_path):
    catalog = Store(uri=str(tmp_path)).catalog("films")
    catalog.embeddings("r1").declare("text", 16)
    upsert_new_in_batches(str(tmp_path), ["first"], 0)  # from here on there are tables, so that rows are appended
    ids = [f"i{number:03}" for number in range(100)]
    side_by_side(upsert_new_in_batches, [(str(tmp_path), ids, who) for who in range(3)])
    assert [item.item_id for item in catalog.items.page(None, 500)] == ["first", *ids]
    table = catalog.embeddings("r1")
    assert table.count() == 101
    rows = table.take(ids, ["text"]).to_pydict()
    hashes = table.hashes(ids)
    for item_id, vector in zip(ids, rows["text"], strict=True):
        assert hashes[item_id] == {"text": f"{item_id}-{vector[0]:.0f}"}, "each row is of one writer"
