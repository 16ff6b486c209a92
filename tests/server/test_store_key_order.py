"""Rows come in order of their key, however they lie, and no more of them are held than is said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from dmesr_server.store import Store, TableState, scans
from dmesr_server.store.key_order import LiesOtherwiseError, in_order, key_order
from hypothesis import given
from hypothesis import strategies as st
from store_workers import column

IDS = [f"item-{number:03}" for number in range(60)]


def batches(keys: list[str], rows: int, read: list[int]) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(keys), rows):
        some = keys[start : start + rows]
        read.append(len(some))
        yield pa.record_batch({"item_id": some, "upper": [key.upper() for key in some]})


@given(keys=st.permutations(IDS[:20]), size=st.integers(0, 20), rows=st.integers(1, 9))
def test_any_order_becomes_that_of_the_key(keys: list[str], size: int, rows: int):
    keys = keys[:size]
    order = key_order(pa.array(keys, pa.string()), state=TableState(b"", 1))
    read: list[int] = []
    given_out: list[str] = []
    for batch in in_order(batches(keys, rows, read), order, by="item_id"):
        given_out += batch.column("item_id").to_pylist()
        assert batch.column("upper").to_pylist() == [key.upper() for key in batch.column("item_id").to_pylist()]
        assert sum(read) - len(given_out) <= order.window + rows  # the batch at hand, and what waits
    assert given_out == sorted(keys)


def test_window_and_disorder_by_hand():
    def of(*keys: str) -> tuple[float, int]:
        order = key_order(pa.array(keys, pa.string()), state=TableState(b"", 1))
        return order.disorder, order.window

    assert of("a", "b", "c", "d") == (0.0, 0)
    assert of("b", "a", "c", "d") == (1 / 4, 1)  # b waits for a
    assert of("c", "d", "a", "b") == (1 / 4, 2)
    assert of("b", "c", "d", "a") == (1 / 4, 3)
    assert of("a", "d", "c", "b") == (2 / 4, 2)


def test_rows_that_wait_do_not_keep_their_batches():
    keys = [key for start in range(0, 60, 10) for key in (*IDS[start + 1 : start + 10], IDS[start])]
    keys = [key for key in keys if key != IDS[0]] + [IDS[0]]  # what all others wait for comes last
    order = key_order(pa.array(keys), state=TableState(b"", 1))
    first = next(in_order(batches(keys, 10, []), order, by="item_id"))
    assert first.column("item_id").to_pylist() == IDS[:1]
    assert order.window == 59
    waiting = list(in_order(batches(keys, 10, []), order, by="item_id"))[1:]
    assert max(batch.column("item_id").buffers()[2].size for batch in waiting) <= 10 * len(IDS[0])


def test_rows_that_lie_otherwise_are_told():
    order = key_order(pa.array(IDS[:4]), state=TableState(b"", 1))
    found = in_order(batches([IDS[0], IDS[1], IDS[3], IDS[2]], 2, []), order, by="item_id")
    assert next(found).column("item_id").to_pylist() == IDS[:2]
    with pytest.raises(LiesOtherwiseError) as caught:
        next(found)
    assert caught.value.after == IDS[1]


class Counted:
    """A LanceDB table that counts what is asked of it."""

    def __init__(self, handle: Any):
        self._handle = handle
        self.searches = 0

    def count_rows(self) -> int:
        found: int = self._handle.count_rows()
        return found

    def search(self) -> Any:
        self.searches += 1
        return self._handle.search()


def test_no_more_is_asked_for_than_is_taken(tmp_path: Path) -> None:
    table = Store(uri=str(tmp_path)).catalog("films").embeddings("r1")
    table.declare("text", 4)
    table.upsert(IDS, {"text": column(np.ones((60, 4)), ["h"] * 60)})
    table.delete(IDS[7:9])
    snapshot = table.snapshot()
    handle = Counted(snapshot.handle)
    reading = replace(snapshot, handle=handle).batches(["item_id"], rows=4)
    first = [next(reading) for _ in range(5)]
    assert handle.searches == 1
    found = [item_id for batch in [*first, *reading] for item_id in batch.column("item_id").to_pylist()]
    assert sorted(found) == IDS[:7] + IDS[9:]
    assert handle.searches == 3  # 58 rows, five batches of four at a time


@pytest.mark.parametrize(
    "bounds",
    [{"DISORDER": 1.0}, {"DISORDER": 0.0}, {"WINDOW_BYTES": -1, "WHOLE_BYTES": -1, "STEP_BYTES": 500}],
    ids=["as they lie", "whole", "by ranges"],
)
@pytest.mark.parametrize("lying", [False, True])
def test_a_table_is_scanned_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bounds: dict[str, float], lying: bool
) -> None:
    for name, bound in bounds.items():
        monkeypatch.setattr(scans, name, bound)
    table = Store(uri=str(tmp_path)).catalog("films").embeddings("r1")
    table.declare("text", 4)
    shuffled = np.random.default_rng(0).permutation(60)
    for some in np.split(shuffled, 6):
        vectors_ND = np.repeat(some[:, None], 4, 1)
        table.upsert([IDS[row] for row in some], {"text": column(vectors_ND, ["h"] * 10, some % 7 != 0)})
    if lying:  # as if rows were read in another order than their keys were

        def order_of(snapshot: object, honest: object = table._table.key_order) -> object:
            order = honest(snapshot)  # type: ignore[operator]
            return replace(order, ranks_N=np.roll(order.ranks_N, 1))

        monkeypatch.setattr(table._table, "key_order", order_of)
    found = list(table.scan(["text"], batch_bytes=10 * 48))
    assert max(batch.num_rows for batch in found) <= 10
    assert len(found) < 20
    assert [item_id for batch in found for item_id in batch.column("item_id").to_pylist()] == IDS
    vectors = [vector for batch in found for vector in batch.column("text").to_pylist()]
    assert vectors == [None if row % 7 == 0 else [row] * 4 for row in range(60)]


@pytest.mark.parametrize("step", [1, 2, 7])
def test_rows_are_found_by_key_whether_they_stand_together_or_not(tmp_path: Path, step: int) -> None:
    """Keys that stand together are looked for as a range, others by a list."""
    ids = sorted(f"it'em-{number:04}" for number in range(700))
    table = Store(uri=str(tmp_path)).catalog("films").embeddings("r1")
    table.declare("text", 1)
    table.upsert(ids, {"text": column(np.ones((700, 1)), ids)})
    asked = [*ids[3 : 3 + 90 * step : step], "it'em-0300x", "nobody", "it'em-0004x"]
    found = table.hashes(asked)
    assert found == {item_id: {"text": item_id} for item_id in asked[:-3]}


@pytest.mark.parametrize("step", [1, 2, 7])
def test_vectors_are_taken_by_key_whether_they_stand_together_or_not(tmp_path: Path, step: int) -> None:
    ids = [f"item-{number:04}" for number in range(700)]
    table = Store(uri=str(tmp_path)).catalog("films").embeddings("r1")
    table.declare("text", 1)
    table.upsert(ids, {"text": column(np.arange(700)[:, None], ids)})
    version = table.version()
    table.upsert(ids[:100], {"text": column(np.zeros((100, 1)), ["later"] * 100)})
    places = range(3, 3 + 90 * step, step)
    taken = table.take([*(ids[place] for place in places), "nobody", ids[0]], ["text"], version)
    assert taken["found"].to_pylist() == [True] * 90 + [False, True]
    assert taken["text"].to_pylist() == [*([float(place)] for place in places), None, [0.0]]
