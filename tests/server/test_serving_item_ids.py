"""The ids of an index find their rows, and rows their ids, whatever was asked for before."""

from __future__ import annotations

import numpy as np
import pytest
from dmesr_server.serving import item_ids
from dmesr_server.serving.item_ids import ItemIds
from hypothesis import given
from hypothesis import strategies as st

IDS = [f"item-{number}" for number in range(40)]


@given(
    asked=st.lists(st.lists(st.sampled_from([*IDS, "nobody", "", "ITEM-1"]), max_size=12), max_size=12),
    kept=st.integers(0, 60),
    few=st.sampled_from([0, 100]),
)
def test_rows_are_those_of_a_dict(asked: list[list[str]], kept: int, few: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_ids, "_KEPT", kept)
        patch.setattr(item_ids, "_FEW", few)
        ids, rows = ItemIds(IDS), {item_id: row for row, item_id in enumerate(IDS)}
        for some in asked:
            found = ids.rows(some)
            assert found.tolist() == [rows.get(item_id, -1) for item_id in some]
            known = found[found >= 0]
            assert ids.of(known) == [item_id for item_id in some if item_id in rows]


def test_two_ids_of_one_hash(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(item_ids, "hash", len, raising=False)
    monkeypatch.setattr(item_ids, "_FEW", 0)
    ids = ItemIds(["aa", "b", "cc", "d"])
    assert ids.rows(["cc", "d", "ee", "aa", "b", ""]).tolist() == [2, 3, -1, 0, 1, -1]
    assert list(ids) == ["aa", "b", "cc", "d"]
    assert ids[1:3] == ["b", "cc"]
    assert ids.of(np.array([3, 0])) == ["d", "aa"]
