"""The filter language: parsing, printing, and masks held against an evaluation written out in Python."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from dmesr_server.errors import ServiceError
from dmesr_server.filters import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    AllOf,
    AnyOf,
    CatalogAttributes,
    Compare,
    Contains,
    Exists,
    Filter,
    Not,
    OneOf,
    parse,
    to_text,
)
from dmesr_server.store import ItemTable, ItemWrite, Store
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

Item = Mapping[str, Sequence[str]]

#: Few names and values, so that conditions meet items; all that could break a quoting, among them.
NAMES = ["year", "genres", "in", "a b", 'quo"te', "it's", "-- x", "ünï", "\\"]
VALUES = [
    *("1990", "1990.0", " 7 ", "-3", "1e3", "x1990", "nan", "inf", "1_000", "٣", ""),
    *(
        "Comedy",
        "comedy",
        "Love Story",
        "GLOVE",
        "straße",
        "STRASSE",
        "İ",
        "'",
        '"',
        "\\",
        "\n",
        "' OR 1=1 --",
        "😀",
        "\x00",
    ),
]
numbers = st.one_of(st.sampled_from([1990.0, 7.0, -3.0, 1000.0, 0.0]), st.floats(allow_nan=False, allow_infinity=False))
texts = st.one_of(st.sampled_from(VALUES), st.text(st.characters(codec="utf-8"), max_size=8))
values = st.one_of(numbers, texts)
names = st.one_of(st.sampled_from(NAMES), st.text(st.characters(codec="utf-8"), min_size=1, max_size=5))
conditions = st.one_of(
    st.builds(Compare, names, st.sampled_from(["=", "<", "<=", ">", ">="]), values),
    st.builds(OneOf, names, st.lists(values, min_size=1, max_size=4).map(tuple)),
    st.builds(Contains, names, texts),
    st.builds(Exists, names),
)


def _nested(inner: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
    parts = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.one_of(st.builds(Not, inner), st.builds(AllOf, parts), st.builds(AnyOf, parts))


filters = st.recursive(conditions, _nested, max_leaves=8)
items = st.lists(
    st.dictionaries(st.sampled_from(NAMES), st.lists(st.sampled_from(VALUES), max_size=3), max_size=4), max_size=8
)


def _number(text: str) -> float | None:
    text = text.strip()
    if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text) is None:
        return None
    return float(text) if abs(float(text)) != float("inf") else None


def _meets(text: str, operator: str, wanted: str | float) -> bool:
    have = text if isinstance(wanted, str) else _number(text)
    if have is None:
        return False
    return {
        "=": lambda: have == wanted,
        "<": lambda: have < wanted,
        "<=": lambda: have <= wanted,
        ">": lambda: have > wanted,
        ">=": lambda: have >= wanted,
    }[operator]()


def naive(filter_: Filter, item: Item) -> bool:
    """The language by its description, one item at a time."""
    if isinstance(filter_, AllOf):
        return all(naive(part, item) for part in filter_.parts)
    if isinstance(filter_, AnyOf):
        return any(naive(part, item) for part in filter_.parts)
    if isinstance(filter_, Not):
        return not naive(filter_.part, item)
    have = item.get(filter_.name, ())
    if isinstance(filter_, Exists):
        return len(have) > 0
    if isinstance(filter_, Contains):
        return any(filter_.text.casefold() in text.casefold() for text in have)
    if isinstance(filter_, OneOf):
        return any(_meets(text, "=", wanted) for text in have for wanted in filter_.values)
    return any(_meets(text, filter_.operator, filter_.value) for text in have)


def write(table: ItemTable, catalogue: Mapping[str, Item]) -> None:
    table.upsert(
        [
            ItemWrite(item_id, tuple((name, tuple(values)) for name, values in attributes.items()), None)
            for item_id, attributes in catalogue.items()
        ]
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(uri=str(tmp_path))


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("year = 1990", Compare("year", "=", 1990.0)),
        ("year >= -1.5e1", Compare("year", ">=", -15.0)),
        ('genres has "Comedy"', Compare("genres", "=", "Comedy")),
        ("genres HAS 'it\\'s'", Compare("genres", "=", "it's")),
        ('a != "b"', Not(Compare("a", "=", "b"))),
        ('a not in ["R", 1]', Not(OneOf("a", ("R", 1.0)))),
        ('a not contains "x"', Not(Contains("a", "x"))),
        ('not a has "x"', Not(Compare("a", "=", "x"))),
        ('"in" exists', Exists("in")),
        ("item-id.x exists", Exists("item-id.x")),
        ("a exists and b exists or c exists", AnyOf((AllOf((Exists("a"), Exists("b"))), Exists("c")))),
        ("a exists and (b exists or c exists)", AllOf((Exists("a"), AnyOf((Exists("b"), Exists("c")))))),
        ("not a exists and b exists", AllOf((Not(Exists("a")), Exists("b")))),
        ('a = "\\u00e9\\ud83d\\ude00\\n"', Compare("a", "=", "é😀\n")),
    ],
)
def test_what_is_written_is_what_is_meant(text: str, tree: Filter):
    assert parse(text) == tree


@pytest.mark.parametrize(
    ("text", "position", "expected"),
    [
        ("", 0, "the name of an attribute"),
        ("year", 4, "a comparison"),
        ("year >> 1990", 6, "a number or a text in quotes"),
        ("year > 1990 year < 2000", 12, "'and', 'or' or the end"),
        ("(year > 1990", 12, "')'"),
        ("year in (1, 2)", 8, "'['"),
        ("year in [1 2]", 11, "',' or ']'"),
        ("title contains love", 15, "a text in quotes"),
        ("year = 19x", 7, "a number or a text in quotes"),
        ("and = 1", 0, "the name of an attribute"),
        ("year = 1; drop table items", 8, "'and', 'or' or the end"),
        ("year = 1 -- x", 9, "'and', 'or' or the end"),
    ],
)
def test_an_error_tells_where_and_what_could_have_stood_there(text: str, position: int, expected: str):
    with pytest.raises(ServiceError) as caught:
        parse(text)
    assert caught.value.reason == "INVALID_FILTER"
    assert caught.value.metadata["position"] == str(position)
    assert expected in caught.value.metadata["expected"]
    assert f"character {position + 1}" in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        'a = "open',
        "a = 'open",
        'a = "\\q"',
        'a = "\\ud800"',
        "a = 1e999",
        '"" = 1',
        "not " * (MAX_DEPTH + 1) + "a exists",
        "(" * (MAX_DEPTH + 1) + "a exists" + ")" * (MAX_DEPTH + 1),
        "a exists" + " or a exists" * MAX_CHARACTERS,
    ],
)
def test_what_is_no_filter_is_refused(text: str):
    with pytest.raises(ServiceError) as caught:
        parse(text)
    assert caught.value.reason == "INVALID_FILTER"


def test_depth_up_to_the_limit_is_read():
    assert to_text(parse("(" * MAX_DEPTH + "a exists" + ")" * MAX_DEPTH)) == '"a" exists'


@given(filters)
def test_a_tree_printed_and_read_is_the_same_tree(tree: Filter):
    assert parse(to_text(tree)) == tree


@given(st.text(st.characters(codec="utf-8"), max_size=40))
@example('a = "x" or "1"="1')
@example("a exists); DROP TABLE items; --")
def test_any_text_is_read_or_refused(text: str):
    try:
        tree = parse(text)
    except ServiceError:
        return
    assert parse(to_text(tree)) == tree


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(catalogue=items, trees=st.lists(filters, min_size=1, max_size=4))
def test_a_mask_is_the_naive_evaluation(store: Store, catalogue: list[Item], trees: list[Filter]):
    catalog = store.catalog("c")
    catalog.items.delete([f"i{place}" for place in range(8)])
    by_id = {f"i{place}": item for place, item in enumerate(catalogue)}
    write(catalog.items, by_id)
    attributes = CatalogAttributes(store=store)
    for tree in trees:
        table = attributes.table("c", tree)
        assert set(table.matching_ids(tree).to_pylist()) == {i for i, item in by_id.items() if naive(tree, item)}
        asked = pa.array(["i3", "nobody", "i0", "i3"])
        expected = [i in by_id and naive(tree, by_id[i]) for i in asked.to_pylist()]
        assert table.mask_of(tree, asked).tolist() == expected


def test_an_injection_stays_data(store: Store):
    items = {"a": {"title": ["x' OR '1'='1"]}, "b": {"title": ["y"]}, "c'); DROP TABLE items; --": {"title": ["z"]}}
    write(store.catalog("c").items, items)
    attributes = CatalogAttributes(store=store)

    def found(tree: Filter) -> list[str]:
        return sorted(attributes.table("c", tree).matching_ids(tree).to_pylist())

    assert found(Compare("title", "=", "x' OR '1'='1")) == ["a"]
    assert found(parse('title = "\' OR 1=1 --"')) == []
    assert found(parse('title contains "%"')) == []
    assert found(parse('title contains "."')) == []
    assert found(parse("\"title') OR ('1'='1\" exists")) == []
    assert len(found(parse("title exists"))) == 3


def test_a_table_follows_the_items(store: Store):
    items = store.catalog("c").items
    write(items, {f"i{n}": {"year": [str(n)], "kind": ["film"]} for n in range(20)})
    attributes = CatalogAttributes(store=store)
    late = parse("year >= 15")

    def found(tree: Filter) -> set[str]:
        return set(attributes.table("c", tree).matching_ids(tree).to_pylist())

    assert found(late) == {"i15", "i16", "i17", "i18", "i19"}
    before = attributes.table("c", late)
    write(items, {"i3": {"year": ["30"], "kind": ["film"]}, "new": {"year": ["40"]}, "i19": {"kind": ["game"]}})
    items.delete(["i16"])
    attributes.refresh()
    assert found(late) == {"i3", "i15", "i17", "i18", "new"}
    assert set(before.matching_ids(late).to_pylist()) == {"i15", "i16", "i17", "i18", "i19"}, "a table never changes"
    assert found(parse('kind = "game"')) == {"i19"}, "a column that is read later"
    assert found(parse('not kind = "film"')) == {"i19", "new"}


def test_a_catalog_made_anew_is_another_one(store: Store):
    attributes = CatalogAttributes(store=store)
    tree = parse("year exists")
    for item_id in ("old", "new"):
        write(store.catalog("c").items, {item_id: {"year": ["1990"]}})
        attributes.refresh()
        assert attributes.table("c", tree).matching_ids(tree).to_pylist() == [item_id]
        other = Store(uri=store.uri)  # as another process would drop it
        other.drop_catalog("c")
        other.close()


def test_more_attributes_than_are_kept_are_refused(store: Store):
    write(store.catalog("c").items, {"a": {"n": ["1"]}})
    attributes = CatalogAttributes(store=store)
    many = parse(" or ".join(f"n{number} exists" for number in range(65)))
    with pytest.raises(ServiceError) as caught:
        attributes.table("c", many)
    assert caught.value.reason == "INVALID_FILTER"
    for number in range(0, 130, 10):  # columns asked for least recently make room
        tree = parse(" or ".join(f"n{n} exists" for n in range(number, number + 10)))
        assert not attributes.table("c", tree).mask(tree).any()
    assert np.array_equal(attributes.table("c", parse("n = 1")).mask(parse("n = 1")), [True])
