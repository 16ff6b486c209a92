from __future__ import annotations

from datetime import UTC, datetime

import pytest
from dmesr_server.store import DescriptionRow, Store
from store_workers import in_threads

TIME = datetime(2026, 3, 4, 5, 6, 7, 891011, tzinfo=UTC)


@pytest.fixture
def descriptions(tmp_path):
    return Store(uri=str(tmp_path)).catalog("films").descriptions


def test_nothing_was_ever_written(descriptions):
    assert descriptions.get(["a"], ["r"]) == []
    assert descriptions.count("r") == (0, 0)


def test_what_is_read_is_what_was_written(descriptions):
    made = DescriptionRow("it's", "text", "r", "h", "A “warm” film.\n", provenance={"a": [1, None]}, create_time=TIME)
    failed = DescriptionRow("it's", "image", "s", "h2", None, "PICTURE_UNREADABLE", "cut short", {}, TIME)
    descriptions.upsert([made, failed])
    assert descriptions.get(["it's", "nobody"], ["r", "s"]) == [failed, made]
    assert descriptions.get(["it's"], ["s"]) == [failed]
    assert descriptions.get([], ["s"]) == descriptions.get(["it's"], []) == []
    assert (descriptions.count("r"), descriptions.count("s"), descriptions.count("'")) == ((1, 0), (0, 1), (0, 0))


def test_one_row_for_each_item_route_and_recipe(descriptions):
    rows = [DescriptionRow("a", route, recipe, "h", "t") for route in ("text", "image") for recipe in ("r", "s")]
    descriptions.upsert(rows)
    descriptions.upsert(
        [DescriptionRow("a", "text", "r", "h2", "first"), DescriptionRow("a", "text", "r", "h2", "last")]
    )
    found = descriptions.get(["a"], ["r", "s"])
    assert [(row.route, row.recipe_id) for row in found] == [
        ("image", "r"),
        ("image", "s"),
        ("text", "r"),
        ("text", "s"),
    ]
    assert found[2].text == "last"
    descriptions.upsert([])


def test_names_that_look_alike_put_together_stay_apart(descriptions):
    descriptions.upsert([DescriptionRow('a","b', "c", "r", "h", "1"), DescriptionRow("a", 'b","c', "r", "h", "2")])
    assert descriptions.count("r") == (2, 0)


def test_threads_write_the_same_rows(tmp_path):
    def write(text: str) -> None:
        table = Store(uri=str(tmp_path)).catalog("films").descriptions
        table.upsert([DescriptionRow(f"i{number}", "text", "r", "h", text) for number in range(30)])

    in_threads(write, [(f"t{number}",) for number in range(6)])
    assert Store(uri=str(tmp_path)).catalog("films").descriptions.count("r") == (30, 0)


class SleptError(Exception):
    """What a writer is told that has lost its right to write."""


def test_who_may_no_longer_write_puts_nothing_over_what_was_written_since(descriptions):
    old, new = (
        [DescriptionRow(i, "text", "r", made, made) for i in ids] for made, ids in [("old", "abc"), ("new", "bc")]
    )
    descriptions.upsert(old[:2])

    def another_writes_and_then_it_is_asked() -> None:
        if descriptions.get(["b"], ["r"])[0].text == "new":
            raise SleptError
        descriptions.upsert(new)

    with pytest.raises(SleptError):
        descriptions.upsert(
            [DescriptionRow(i, "text", "r", "stale", "stale") for i in "abc"],
            allowed=another_writes_and_then_it_is_asked,
        )
    # Nobody else had written this one: it was allowed when it was asked for.
    assert {row.item_id: row.text for row in descriptions.get(["a", "b", "c"], ["r"])} == {
        "a": "stale",
        "b": "new",
        "c": "new",
    }


def test_who_may_write_still_writes_over_what_was_written_since(descriptions):
    asked = []

    def another_writes_once() -> None:
        asked.append(True)
        if len(asked) == 1:
            descriptions.upsert([DescriptionRow("a", "text", "r", "theirs", "theirs")])

    descriptions.upsert([DescriptionRow("a", "text", "r", "mine", "mine")], allowed=another_writes_once)
    assert len(asked) == 2
    assert descriptions.get(["a"], ["r"])[0].text == "mine"


def test_a_row_that_was_replaced_since_it_was_read_is_not_deleted(descriptions):
    descriptions.upsert([DescriptionRow("a", "text", "r", "h", "old")])
    (old,) = descriptions.get(["a"], ["r"])
    descriptions.upsert([DescriptionRow("a", "text", "r", "h", "new")])
    descriptions.delete_rows([old])
    assert descriptions.get(["a"], ["r"])[0].text == "new"
    descriptions.delete_rows(descriptions.get(["a"], ["r"]))
    assert descriptions.get(["a"], ["r"]) == []


def test_deleting_takes_every_route(descriptions):
    descriptions.upsert([DescriptionRow(i, r, "r", "h", "t") for i in ("a", "b") for r in ("text", "image")])
    descriptions.delete(["a", "nobody"])
    assert {row.item_id for row in descriptions.get(["a", "b"], ["r"])} == {"b"}


def test_deleting_just_these_rows(descriptions):
    rows = [DescriptionRow("a", route, recipe, "h", "t") for route in ("text", "image") for recipe in ("r", "s")]
    descriptions.upsert(rows)
    descriptions.delete_rows([rows[0], rows[3], DescriptionRow("nobody", "text", "r", "h", "t")])
    assert {row.key for row in descriptions.get(["a"], ["r", "s"])} == {rows[1].key, rows[2].key}
