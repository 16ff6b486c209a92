"""What a table was like is believed for as long as its folder stands as it did, and no longer."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from dmesr_server.store import EmbeddingTable, Store, TableState
from dmesr_server.store.last_seen import LastSeen, Seen
from store_workers import column

HOUR_NS = 3_600_000_000_000


class Asked:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Seen:
        self.times += 1
        return TableState(b"", self.times), pa.schema([])


def settle(folder: Path, *, ago_ns: int = HOUR_NS) -> None:
    at = time.time_ns() - ago_ns
    os.utime(folder / "_versions", ns=(at, at))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "_versions").mkdir()
    return tmp_path


def test_a_folder_that_stands_as_it_did_is_believed(folder: Path):
    seen, asked = LastSeen(folder), Asked()
    settle(folder)
    assert [seen.get(asked)[0].version for _ in range(3)] == [1, 1, 1]
    settle(folder, ago_ns=HOUR_NS // 2)  # a version was written, half an hour ago
    assert [seen.get(asked)[0].version for _ in range(3)] == [2, 2, 2]
    (folder / "_versions" / "3.manifest").touch()
    assert seen.get(asked)[0].version == 3


def test_one_that_has_just_changed_is_not(folder: Path):
    seen, asked = LastSeen(folder), Asked()
    for _ in range(3):
        settle(folder, ago_ns=0)
        seen.get(asked)
    settle(folder, ago_ns=-HOUR_NS)  # a clock that went back
    seen.get(asked)
    seen.get(asked)
    assert asked.times == 5


def test_without_a_folder_it_is_always_asked(tmp_path: Path):
    asked = Asked()
    for seen in (LastSeen(None), LastSeen(tmp_path / "none")):
        seen.get(asked)
        seen.get(asked)
    assert asked.times == 4


def table_of(folder: Path) -> EmbeddingTable:
    return Store(uri=str(folder)).catalog("films").embeddings("0123456789abcdef")


def test_what_others_write_is_seen_at_once(tmp_path: Path):
    ours, theirs = table_of(tmp_path), table_of(tmp_path)
    assert ours.seen() == (TableState(b"", 0), {})
    theirs.declare("text", 4)
    for number, pause in enumerate([0.0, 0.005, 0.12, 0.0, 0.0, 0.12, 0.2, 0.001] * 4):
        time.sleep(pause)
        theirs.upsert([f"item-{number % 5}"], {"text": column(np.full((1, 4), number + 1, np.float32), [None])})
        state, dims = ours.seen()
        assert (state.version, dims) == (theirs.version(), {"text": 4})
        assert ours.seen() == table_of(tmp_path).seen()
    theirs.declare("image", 8)
    assert ours.seen()[1] == {"text": 4, "image": 8}
    time.sleep(0.15)
    before, _ = ours.seen()
    theirs.drop()
    assert ours.seen()[0].version == 0
    theirs.declare("text", 4)
    assert ours.seen()[0].incarnation not in (b"", before.incarnation)


def test_of_a_store_that_other_machines_write_to_nothing_is_believed(tmp_path: Path):
    table_of(tmp_path).declare("text", 4)
    time.sleep(0.15)
    for options in ({"one_host": False}, {"read_only": True}):
        table = Store(uri=str(tmp_path), **options).catalog("films").embeddings("0123456789abcdef")
        assert table.seen()[1] == {"text": 4}
        assert table._table._last_seen._known is None
