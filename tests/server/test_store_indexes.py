from __future__ import annotations

from pathlib import Path

import lancedb
import pyarrow as pa
from dmesr_server.store.indexes import pays_for_merge
from lancedb.index import BTree


def rows(first: int, last: int) -> pa.Table:
    return pa.table({"item_id": [f"item-{number:05}" for number in range(first, last)]})


def test_a_merge_goes_through_an_index_that_covers_nearly_all(tmp_path: Path) -> None:
    table = lancedb.connect(tmp_path).create_table("items", rows(0, 1_000))
    assert not pays_for_merge(table, "item_id")  # there is none
    table.create_index("item_id", config=BTree())
    assert pays_for_merge(table, "item_id")
    table.add(rows(1_000, 1_010))
    assert pays_for_merge(table, "item_id")
    table.add(rows(1_010, 1_011))
    assert not pays_for_merge(table, "item_id")  # more than a hundredth would be read whole at every merge
    table.optimize()
    assert pays_for_merge(table, "item_id")
