from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dmesr_server.store import ItemTable, ItemWrite, Store, attributes_hash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_workers import in_processes, in_threads, upsert_items

EVIL_IDS = [
    "it's",
    "''",
    '"double"',
    "100%",
    "under_score",
    "back\\slash",
    "a\\'b",
    "`tick`",
    "'; DROP TABLE items; --",
    "' OR '1'='1",
    "/*",
    "--",
    "null",
    "true",
    "Ünï·cödé",
    "日本語",
    "😀",
    "\u202eright-to-left",
    " leading and trailing ",
    "UPPER",
    "upper",
    "../../etc/passwd",
    "1",
    "01",
    "1.0",
]


@pytest.fixture
def items(tmp_path: Path) -> ItemTable:
    return Store(uri=str(tmp_path)).catalog("films").items


def write(item_id: str, title: str = "t", picture: str | None = None) -> ItemWrite:
    return ItemWrite(item_id, (("title", (title,)), ("genres", ("Drama", "Comedy"))), picture)


def test_nothing_was_ever_written(items):
    assert items.count() == 0
    assert items.version() == 0
    assert items.get(["a"]) == {}
    assert items.existing(["a"]) == set()
    assert items.page(None, 10) == []
    assert list(items.iterate()) == []
    items.delete(["a"])
    assert items.version() == 0, "neither reads nor empty deletes make the table"


def test_upsert_says_what_happened_to_each_row(items):
    assert items.upsert([write("b"), write("a")]) == ["inserted", "inserted"]
    assert items.upsert([write("a"), write("c"), write("b", "new")]) == ["unchanged", "inserted", "updated"]
    assert items.upsert([write("a", picture="ff" * 32)]) == ["updated"]
    assert items.count() == 3


def test_unchanged_rows_write_nothing(items):
    items.upsert([write("a"), write("b")])
    version = items.version()
    assert items.upsert([write("b"), write("a")]) == ["unchanged", "unchanged"]
    assert items.upsert([]) == []
    assert items.version() == version


def test_what_is_read_is_what_was_written(items):
    before = datetime.now(UTC)
    attributes = (("title", ("A “film”, \n\t1:1",)), ("empty", ()), ("genres", ("B", "A", "B")), ("", ("",)))
    items.upsert([ItemWrite("a", attributes, "ab" * 32)])
    item = items.get(["a"])["a"]
    assert item.attributes == attributes, "order of names and of values is kept"
    assert item.picture_sha256 == "ab" * 32
    assert before - timedelta(seconds=1) <= item.update_time <= datetime.now(UTC)
    text = json.dumps([[n, list(v)] for n, v in attributes], ensure_ascii=False, separators=(",", ":"))
    assert item.attributes_hash == attributes_hash(attributes) == hashlib.sha256(text.encode()).hexdigest()


def test_attribute_order_is_content(items):
    items.upsert([ItemWrite("a", (("x", ("1",)), ("y", ("2",))), None)])
    assert items.upsert([ItemWrite("a", (("y", ("2",)), ("x", ("1",))), None)]) == ["updated"]


def test_evil_ids_stay_apart(items):
    assert items.upsert([write(item_id, item_id) for item_id in EVIL_IDS]) == ["inserted"] * len(EVIL_IDS)
    assert items.count() == len(EVIL_IDS)
    for item_id in EVIL_IDS:
        assert items.existing([item_id]) == {item_id}
        assert items.get([item_id])[item_id].attributes[0] == ("title", (item_id,))
    in_order = sorted(EVIL_IDS, key=str.encode)
    assert [item.item_id for batch in items.iterate(4) for item in batch] == in_order
    for item_id in EVIL_IDS:
        items.delete([item_id])
        assert items.existing([item_id]) == set()
    assert items.count() == 0


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=st.lists(
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40), min_size=1, unique=True
    )
)
def test_any_id_is_found_again(tmp_path_factory, ids):
    items = Store(uri=str(tmp_path_factory.mktemp("ids"))).catalog("c").items
    items.upsert([write(item_id) for item_id in ids])
    assert set(items.get(ids)) == set(ids)
    assert [item.item_id for item in items.page(None, 1_000)] == sorted(ids, key=str.encode)


def test_pages_follow_each_other_without_gap_or_overlap(items):
    ids = [f"i{number:03d}" for number in range(25)]
    items.upsert([write(item_id) for item_id in reversed(ids)])
    found, after = [], None
    while page := items.page(after, 7):
        assert len(page) <= 7
        found += [item.item_id for item in page]
        after = page[-1].item_id
    assert found == ids
    assert [item.item_id for item in items.page("i0035", 2)] == ["i004", "i005"], "after an id that is not there"
    assert items.page("i024", 5) == []
    assert items.page("zzz", 5) == []


def test_iterate_reads_one_snapshot(items):
    ids = [f"i{number:03d}" for number in range(10)]
    items.upsert([write(item_id, "old") for item_id in ids])
    batches = items.iterate(3)
    first = next(batches)
    items.upsert([write("i000a"), *(write(item_id, "new") for item_id in ids)])
    items.delete(["i009"])
    rest = [item for batch in batches for item in batch]
    assert [item.item_id for item in [*first, *rest]] == ids
    assert {item.attributes[0] for item in rest} == {("title", ("old",))}
    assert items.count() == 10


def test_more_ids_than_one_query_takes(items):
    ids = [f"i{number}" for number in range(5_000)]
    items.upsert([write(item_id) for item_id in ids])
    assert items.existing([*ids, "x"]) == set(ids)
    assert len(items.get(ids[::2])) == 2_500
    assert sum(len(batch) for batch in items.iterate(700)) == 5_000
    items.delete(ids[:4_500])
    assert items.count() == 500


def test_other_handles_see_a_write_at_once(tmp_path):
    one, other = Store(uri=str(tmp_path)).catalog("films").items, Store(uri=str(tmp_path)).catalog("films").items
    assert other.count() == 0
    one.upsert([write("a")])
    assert (other.count(), len(other.page(None, 5)), other.existing(["a"])) == (1, 1, {"a"})
    one.upsert([write("b")])
    assert [item.item_id for item in other.page(None, 5)] == ["a", "b"]
    one.delete(["a"])
    assert [item.item_id for item in other.page(None, 5)] == ["b"]


def test_threads_upsert_the_same_new_ids(tmp_path):
    store = Store(uri=str(tmp_path))
    ids = [f"i{number}" for number in range(50)]
    in_threads(
        lambda title: store.catalog("films").items.upsert([write(item_id, title) for item_id in ids]),
        [(f"t{number}",) for number in range(8)],
    )
    assert store.catalog("films").items.count() == 50


def test_stores_of_one_process_upsert_the_same_new_ids(tmp_path):
    """Each has handles and locks of its own, so only LanceDB stands between them, as between processes."""
    ids = [f"i{number}" for number in range(50)]
    in_threads(upsert_items, [(str(tmp_path), ids, f"t{number}") for number in range(6)])
    assert Store(uri=str(tmp_path)).catalog("films").items.count() == 50


def test_processes_upsert_the_same_new_ids(tmp_path):
    ids = [f"i{number}" for number in range(50)]
    outcomes = in_processes(upsert_items, [(str(tmp_path), ids, f"t{number}") for number in range(3)])
    assert all(outcome in ("inserted", "updated") for each in outcomes for outcome in each)
    items = Store(uri=str(tmp_path)).catalog("films").items
    assert items.count() == 50
    assert [item.item_id for item in items.page(None, 100)] == sorted(ids)
