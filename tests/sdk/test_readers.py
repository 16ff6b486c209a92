"""Items and interactions out of files: what a row becomes, and that a bad one costs only itself."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import dmesr
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dmesr import Item, Problem, RejectedRow
from dmesr.readers import ColumnMapping, Interaction, Row, read_interactions, read_items, read_rows

Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return to_file


def problems(rows: list[Item | RejectedRow]) -> list[tuple[str, str]]:
    """Row number and reason of each rejected row."""
    return [(row.metadata["row"], row.reason) for row in rows if isinstance(row, RejectedRow)]


def test_csv(write: Write):
    path = write(
        "films.csv",
        b"\xef\xbb\xbfmovieId,title,genres,poster\r\n"
        b'1,"The ""Blob""",horror|sci-fi, one.jpg\r\n'
        b'2,"Over\ntwo lines","a, b",\r\n'
        b"\r\n"
        b"3,,|,https://img/3.jpg\r\n",
    )
    mapping = ColumnMapping(item_id="movieId", picture="poster", list_separator="|")
    assert list(read_items(path, mapping=mapping)) == [
        Item("1", {"title": 'The "Blob"', "genres": ["horror", "sci-fi"]}, picture=path.parent / " one.jpg"),
        Item("2", {"title": "Over\ntwo lines", "genres": "a, b"}),
        Item("3", picture="https://img/3.jpg"),
    ]


def test_chosen_columns_keep_their_order_and_names(write: Write):
    path = write("films.tsv", "item_id\tT\tG\tX\n1\tAlien\tsci-fi\tx\n")
    mapping = ColumnMapping(attributes={"genres": "G", "title": "T"}, picture="X", picture_root=Path("/posters"))
    (item,) = read_items(path, mapping=mapping)
    assert isinstance(item, Item)
    assert list(item.attributes.items()) == [("genres", "sci-fi"), ("title", "Alien")]
    assert item.picture == Path("/posters/x")


def test_bad_rows_of_csv_cost_only_themselves(write: Write):
    path = write(
        "films.csv",
        b"item_id,title\n"
        b"1,good\n"
        b'2,bad "quote" is text\n'
        b'3,"bad "quote" here"\n'
        b"4,too,many\n"
        b"5\n"
        b",no id\n"
        b"  ,blank id\n"
        b"6,caf\xff\n"
        b"7," + b"x" * 200_000 + b"\n"
        b"8,good\n"
        b'9,"never closed\n'
        b"10,good\n",
    )
    rows = list(read_items(path))
    assert [row.item_id for row in rows if isinstance(row, Item)] == ["1", "2", "8", "10"]
    assert problems(rows) == [
        ("3", "UNREADABLE_ROW"),
        ("4", "UNREADABLE_ROW"),
        ("5", "UNREADABLE_ROW"),
        ("6", "INVALID_ITEM_ID"),
        ("7", "INVALID_ITEM_ID"),
        ("8", "UNREADABLE_ROW"),
        ("9", "UNREADABLE_ROW"),
        ("11", "UNREADABLE_ROW"),
    ]
    messages = [row.message for row in rows if isinstance(row, RejectedRow)]
    assert messages[1] == "row 4 of films.csv: it has 3 cells, the header 2; quote a cell that holds ',' (line 5)"
    assert f"longer than {csv.field_size_limit():,} characters" in messages[6]
    assert messages[7].endswith("a quote is opened and never closed (lines 12 to 13)")


def test_jsonl(write: Write):
    lines = [
        {"item_id": 1, "title": "Alien", "genres": ["horror", None, "sci-fi"], "year": 1979, "seen": True},
        {"item_id": 2.0, "title": None, "tags": [], "rating": float("nan")},
        {"item_id": "3", "title": ""},
    ]
    path = write("films.jsonl", "\ufeff" + "\n\n".join(json.dumps(line) for line in lines))
    assert list(read_items(path)) == [
        Item("1", {"title": "Alien", "genres": ["horror", "sci-fi"], "year": 1979, "seen": True}),
        Item("2"),
        Item("3"),
    ]


def test_bad_rows_of_jsonl_cost_only_themselves(write: Write):
    path = write(
        "films.jsonl",
        b'{"item_id": "1"}\n'
        b"{no json}\n"
        b"[1, 2]\n"
        b'{"title": "no id"}\n'
        b'{"item_id": ["5"]}\n'
        b'{"item_id": "6", "cast": {"lead": "x"}}\n'
        b'{"item_id": "7", "title": "caf\xff"}\n' + b'{"item_id": "8", "deep": ' + b"[" * 100_000 + b"\n"
        b'{"item_id": "9"}',
    )
    rows = list(read_items(path))
    assert [row.item_id for row in rows if isinstance(row, Item)] == ["1", "9"]
    assert problems(rows) == [
        ("2", "UNREADABLE_ROW"),
        ("3", "UNREADABLE_ROW"),
        ("4", "INVALID_ITEM_ID"),
        ("5", "INVALID_ITEM_ID"),
        ("6", "INVALID_ATTRIBUTE"),
        ("7", "UNREADABLE_ROW"),
        ("8", "UNREADABLE_ROW"),
    ]
    assert [row.item_id for row in rows if isinstance(row, RejectedRow)][4] == "6"


def test_parquet(tmp_path: Path):
    path = tmp_path / "films.parquet"
    table = pa.table(
        {
            "item_id": pa.array([1, 2], pa.int64()),
            "title": ["Alien", None],
            "genres": pa.array([["horror", "sci-fi"], None], pa.list_(pa.string())),
            "released": [date(1979, 5, 25), None],
            "price": pa.array([Decimal("9.90"), None]),
            "poster": pa.array([b"\x89PNG", None], pa.binary()),
        }
    )
    pq.write_table(table, path)
    assert list(read_items(path, mapping=ColumnMapping(picture="poster"))) == [
        Item(
            "1",
            {"title": "Alien", "genres": ["horror", "sci-fi"], "released": "1979-05-25", "price": "9.90"},
            picture=b"\x89PNG",
        ),
        Item("2"),
    ]


def test_pictures_as_the_hub_stores_them(tmp_path: Path):
    path = tmp_path / "films.parquet"
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": b"x", "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, None], kind)
    pq.write_table(pa.table({"item_id": ["1", "2", "3"], "image": images}), path)
    rows = list(read_items(path, mapping=ColumnMapping(picture="image")))
    assert [row.picture for row in rows if isinstance(row, Item)] == [b"x", tmp_path / "b.jpg", None]
    unmapped = list(read_items(path))
    assert problems(unmapped) == [("1", "INVALID_ATTRIBUTE"), ("2", "INVALID_ATTRIBUTE")]


def test_the_column_picture_is_the_picture_unless_told_otherwise(write: Write):
    path = write("films.csv", "item_id,title,picture\n1,Heat,1.jpg\n2,Alien,\n")

    def read(**mapping: object) -> list[tuple[dict[str, object], object]]:
        rows = read_items(path, mapping=ColumnMapping(**mapping))  # type: ignore[arg-type]
        return [(dict(row.attributes), row.picture) for row in rows if isinstance(row, Item)]

    assert read() == [({"title": "Heat"}, path.parent / "1.jpg"), ({"title": "Alien"}, None)]
    assert read(attributes={"title": "title"})[0] == ({"title": "Heat"}, None)
    assert read(attributes={"file": "picture"})[0] == ({"file": "1.jpg"}, None)


def test_a_catalogue_names_no_files_outside_the_folder_of_its_pictures(write: Write, tmp_path: Path):
    path = write("films.csv", "item_id,poster\n1,../secret.jpg\n2,/etc/passwd\n3,a/../b.jpg\n")
    rows = [row for row in read_items(path, mapping=ColumnMapping(picture="poster")) if isinstance(row, Item)]
    reasons = [row.picture.reason if isinstance(row.picture, Problem) else row.picture for row in rows]
    assert reasons == ["PICTURE_URI_NOT_ALLOWED"] * 2 + [path.parent / "a/../b.jpg"]
    everywhere = read_items(path, mapping=ColumnMapping(picture="poster", picture_root=Path("/")))
    assert [row.picture for row in everywhere if isinstance(row, Item)][1] == Path("/etc/passwd")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "title\nx\n", "has no column 'item_id'; it has 'title'"),
        ("a.csv", "", "has no header"),
        ("a.csv", "item_id,x,x\n", "has the column 'x' twice"),
        ("a.csv", "item_id,x\n".encode("utf-16"), "is not UTF-8"),
        ("a.csv", 'item_id,"x\n', "the header cannot be read"),
        ("a.parquet", "this is no Parquet", r"cannot read .*a\.parquet"),
        ("a.xlsx", "", "cannot tell the format from the name"),
    ],
)
def test_a_file_that_cannot_be_read_at_all(write: Write, name: str, content: str | bytes, message: str):
    with pytest.raises(dmesr.InvalidInput, match=message):
        list(read_items(write(name, content)))


@pytest.mark.parametrize("name", ["none.csv", "none.parquet", "none.jsonl"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str):
    with pytest.raises(dmesr.InvalidInput, match="No such file"):
        list(read_items(tmp_path / name))


def test_the_format_may_be_told(write: Write):
    path = write("films.txt", '{"item_id": "1"}')
    assert list(read_items(path, format="jsonl")) == [Item("1")]


def test_rows(write: Write):
    path = write("texts.csv", "item_id,text\n1,\n2,b\n")
    assert list(read_rows(path, needed=["text"])) == [
        Row(1, {"item_id": "1", "text": None}),
        Row(2, {"item_id": "2", "text": "b"}),
    ]
    assert list(read_rows(write("t.jsonl", '{"a": 1}'), needed=["b"])) == [Row(1, {"a": 1, "b": None})]


def test_interactions(write: Write, tmp_path: Path):
    path = write("ratings.csv", "u,i,t\n7,1,964982703\n7,2,2000-07-30T18:45:03\n7,3,later\n,4,1\n7,,1\n")
    rows = list(read_interactions(path, user="u", item="i", time="t"))
    assert rows[:2] == [Interaction("7", "1", 964982703.0), Interaction("7", "2", 964982703.0)]
    assert [(row.metadata["row"], row.reason) for row in rows[2:] if isinstance(row, RejectedRow)] == [
        ("3", "INVALID_FIELD"),
        ("4", "INVALID_ITEM_ID"),
        ("5", "INVALID_ITEM_ID"),
    ]
    assert next(iter(read_interactions(path, user="u", item="i"))) == Interaction("7", "1", None)
    events = tmp_path / "events.parquet"
    pq.write_table(pa.table({"u": [1], "i": ["a"], "t": [datetime(2000, 1, 1)], "more": [1]}), events)
    assert list(read_interactions(events, user="u", item="i", time="t")) == [Interaction("1", "a", 946684800.0)]


@pytest.mark.parametrize("name", ["big.csv", "big.jsonl", "big.parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str):
    """Reading 40 MB in a process of its own costs a few MB more than starting it."""
    path = tmp_path / name
    text = "word " * 200
    count = 40_000
    if name.endswith("csv"):
        path.write_text("item_id,text\n" + "".join(f"{n},{text}\n" for n in range(count)))
    elif name.endswith("jsonl"):
        path.write_text("".join(f'{{"item_id": {n}, "text": "{text}"}}\n' for n in range(count)))
    else:
        schema = pa.schema([("item_id", pa.int64()), ("text", pa.string())])
        with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
            for start in range(0, count, 20_000):
                ids = list(range(start, start + 20_000))
                writer.write_table(pa.table({"item_id": ids, "text": [f"{n}{text}" for n in ids]}, schema=schema))
    code = f"""
import resource, dmesr.readers, pyarrow.parquet
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(sum(1 for _ in dmesr.readers.read_items({str(path)!r})))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rows, more_kib = map(int, done.stdout.split())
    assert rows == count
    assert more_kib < 30 * 1024


def test_a_mapping_that_cuts_by_nothing():
    with pytest.raises(dmesr.InvalidInput, match="list_separator is empty"):
        ColumnMapping(list_separator="")
