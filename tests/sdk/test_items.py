"""Items and pictures through the SDK, on a real server."""

from __future__ import annotations

import hashlib
import io
import math
import random
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import dmesr
import dmesr.aio
import numpy as np
import pytest
from dmesr import Item, RejectedRow
from PIL import Image
from running_server import RunningServer

Png = Callable[..., bytes]


def test_what_comes_back_is_what_went_in(films: dmesr.Client, png: Png):
    red = png("red")
    before = datetime.now(UTC)
    films.items.upsert(
        [
            Item(
                "1",
                {
                    "title": "Alien",
                    "year": 1979,
                    "genres": ("horror", "sci-fi"),
                    "rating": 8.5,
                    "colour": True,
                    "votes": np.int64(9),
                    "share": np.float32(0.1),
                    "cut": np.bool_(False),
                    "award": None,
                    "budget": math.nan,
                    "tags": [],
                },
                picture=red,
            )
        ]
    )
    item = films.items.get("1")
    assert item.item_id == "1"
    assert list(item.attributes.items()) == [
        ("title", ["Alien"]),
        ("year", ["1979"]),
        ("genres", ["horror", "sci-fi"]),
        ("rating", ["8.5"]),
        ("colour", ["true"]),
        ("votes", ["9"]),
        ("share", ["0.1"]),
        ("cut", ["false"]),
    ]
    assert item.picture == f"sha256:{hashlib.sha256(red).hexdigest()}"
    assert item.update_time is not None
    assert before <= item.update_time <= datetime.now(UTC)
    assert item.title == "Alien"
    assert films.items.picture(item.picture) == red
    assert films.items.upsert([item]).unchanged == 1


def test_titles():
    assert Item("1", {"name": "N", "title": "T"}).title == "T"
    assert Item("1", {"name": ["N", "M"]}).title == "N"
    assert Item("1", {"title": []}).title == "1"
    assert Item("1").title == "1"


def test_counts_of_a_second_import(films: dmesr.Client):
    films.items.upsert(Item(str(n), {"title": str(n)}) for n in range(10))
    again = films.items.upsert(Item(str(n), {"title": str(n) if n < 4 else "new"}) for n in range(12))
    assert (again.inserted, again.updated, again.unchanged, again.rejected) == (2, 6, 4, ())
    assert again.rows == 12
    assert films.items.count() == 12


def test_a_catalogue_of_many_batches(films: dmesr.Client):
    seen: list[dmesr.UpsertSummary] = []
    summary = films.items.upsert((Item(f"{n:03}", {"title": "x" * 60_000}) for n in range(150)), progress=seen.append)
    # 40 items a batch is the server's limit, and 52 items of 60 kB are all that 3 MiB hold.
    assert summary.inserted == 150
    assert [so_far.inserted for so_far in seen] == [40, 80, 120, 150]
    assert [item.item_id for item in films.items.list(page_size=70)] == [f"{n:03}" for n in range(150)]
    assert films.items.count() == 150


def test_a_batch_is_cut_below_the_message_limit(films: dmesr.Client):
    seen: list[dmesr.UpsertSummary] = []
    big = {f"a{n}": "x" * 600 for n in range(100)}
    films.items.upsert((Item(str(n), big | {"t": "y" * 5_000}) for n in range(40)), progress=seen.append)
    films.items.upsert([Item(str(n), {"t": "é" * 32_000}) for n in range(60)], batch_size=40, progress=seen.append)
    assert films.items.count() == 60
    assert not seen[-1].rejected


def test_bad_rows_are_rejected_alone(films: dmesr.Client):
    summary = films.items.upsert(
        [
            Item("good", {"title": "G"}),
            Item("", {"title": "no id"}),
            Item("long" * 100),
            Item("big", {"title": "x" * 100_000}),
            Item("huge", {"title": "x" * 4_000_000}),
            Item("object", {"title": object()}),  # type: ignore[dict-item]
            Item("nested", {"title": [["a"]]}),  # type: ignore[list-item]
            Item("surrogate", {"title": "\ud800"}),
            Item("\ud800"),
            Item(7, {"title": "number"}),  # type: ignore[arg-type]
            Item("unnamed", {"": "x"}),
            Item("listed", ["title"]),  # type: ignore[arg-type]
            RejectedRow("file-row", "UNREADABLE_ROW", "row 3 of a.csv: it is no JSON"),
            Item("also good", {"title": "G"}),
        ]
    )
    assert summary.inserted == 2
    assert sorted((row.item_id, row.reason) for row in summary.rejected) == sorted(
        [
            ("", "INVALID_ITEM_ID"),
            ("long" * 100, "INVALID_ITEM_ID"),
            ("big", "ATTRIBUTES_TOO_LARGE"),
            ("huge", "ATTRIBUTES_TOO_LARGE"),
            ("object", "INVALID_ATTRIBUTE"),
            ("nested", "INVALID_ATTRIBUTE"),
            ("surrogate", "INVALID_ATTRIBUTE"),
            ("'\\ud800'", "INVALID_ITEM_ID"),
            ("7", "INVALID_ITEM_ID"),
            ("unnamed", "INVALID_ATTRIBUTE"),
            ("listed", "INVALID_ATTRIBUTE"),
            ("file-row", "UNREADABLE_ROW"),
        ]
    )
    assert [item.item_id for item in films.items.list()] == ["also good", "good"]


def test_something_that_is_no_item_is_a_mistake_of_the_caller(films: dmesr.Client):
    with pytest.raises(dmesr.InvalidInput, match=r"expected items of type dmesr\.Item, got dict"):
        films.items.upsert([{"item_id": "1"}])  # type: ignore[list-item]
    with pytest.raises(dmesr.InvalidInput, match="batch_size is 0"):
        films.items.upsert([], batch_size=0)


def test_nothing_to_do_is_fine(films: dmesr.Client):
    assert films.items.upsert([]) == dmesr.UpsertSummary()
    assert films.items.get_many([]) == dmesr.ItemsFound((), ())
    assert films.items.delete([]) == dmesr.DeleteSummary(0, ())
    assert list(films.items.list()) == []


def test_pictures_travel_once_and_only_where_missing(films: dmesr.Client, png: Png, tmp_path: Path):
    path = tmp_path / "red.png"
    path.write_bytes(png("red"))
    first = films.items.upsert([Item("1", picture=path), Item("2", picture=path.read_bytes()), Item("3", picture=path)])
    assert (first.inserted, first.picture_problems) == (3, ())
    assert len({item.picture for item in films.items.list()}) == 1
    assert {table.name: table.rows for table in films.admin.store_stats().tables}["pictures"] == 1
    again = films.items.upsert([Item("1", picture=path)])
    assert again.unchanged == 1


def test_a_picture_of_many_chunks(films: dmesr.Client):
    noise = random.Random(0).randbytes(1_300 * 1_200 * 3)
    buffer = io.BytesIO()
    Image.frombytes("RGB", (1_300, 1_200), noise).save(buffer, "PNG")
    data = buffer.getvalue()
    assert len(data) > 4 * 1024 * 1024
    assert films.items.upsert([Item("1", picture=data)]).picture_problems == ()
    assert films.items.picture(films.items.get("1").picture or "") == data  # type: ignore[arg-type]


def test_a_bad_picture_costs_only_itself(films: dmesr.Client, png: Png, tmp_path: Path):
    folder = tmp_path / "folder"
    folder.mkdir()
    summary = films.items.upsert(
        [
            Item("none", picture=tmp_path / "none.png"),
            Item("folder", picture=folder),
            Item("text", picture=b"no picture"),
            Item("empty", picture=b""),
            Item("cut", picture=png("red", size=(64, 64))[:40]),
            Item("large", picture=bytes(7 * 1024 * 1024)),
            Item("bomb", picture=png("red", size=(3_000, 3_000))),
            Item("unknown", picture="sha256:" + "0" * 64),
            Item("malformed", picture="sha256:12"),
            Item("elsewhere", picture="file:///etc/passwd"),
            Item("number", picture=7),  # type: ignore[arg-type]
            Item("good", picture=png("red")),
        ]
    )
    assert (summary.inserted, summary.rejected) == (12, ())
    assert {row.item_id: row.reason for row in summary.picture_problems} == {
        "none": "PICTURE_FILE_NOT_FOUND",
        "folder": "PICTURE_FILE_NOT_FOUND",
        "text": "PICTURE_UNREADABLE",
        "empty": "PICTURE_UNREADABLE",
        "cut": "PICTURE_UNREADABLE",
        "large": "PICTURE_TOO_LARGE",
        "bomb": "PICTURE_TOO_MANY_PIXELS",
        "unknown": "PICTURE_NOT_FOUND",
        "malformed": "INVALID_FIELD",
        "elsewhere": "PICTURE_URI_NOT_ALLOWED",
        "number": "PICTURE_UNREADABLE",
    }
    assert [item.item_id for item in films.items.list() if item.picture] == ["good"]


def test_where_a_picture_may_come_from(films: dmesr.Client, png: Png, picture_root: Path):
    (picture_root / "poster.png").write_bytes(png("blue"))
    films.items.upsert([Item("1", {"title": "a"}, picture=f"file://{picture_root}/poster.png")])
    sha256 = films.items.get("1").picture
    assert sha256 == f"sha256:{hashlib.sha256(png('blue')).hexdigest()}"
    films.items.upsert([Item("1", {"title": "b"}, picture=dmesr.KEEP_PICTURE)])
    assert films.items.get("1").picture == sha256
    films.items.upsert([Item("1", {"title": "b"}), Item("2", picture=sha256)])
    assert films.items.get("1").picture is None
    assert films.items.get("2").picture == sha256


def test_reads_by_id_keep_the_order_and_name_what_is_missing(films: dmesr.Client):
    films.items.upsert(Item(str(n)) for n in range(120))
    asked = [str(n) for n in range(119, -1, -1)] + ["none", "neither"]
    found = films.items.get_many(asked)  # more than the server takes in one call
    assert [item.item_id for item in found.items] == asked[:-2]
    assert found.missing == ("none", "neither")
    deleted = films.items.delete(asked)
    assert (deleted.deleted, sorted(deleted.missing)) == (120, ["neither", "none"])
    assert films.items.count() == 0


def test_an_unknown_item_is_named(films: dmesr.Client):
    with pytest.raises(dmesr.ItemNotFound, match=f"no item 'none' in catalog '{films.catalog_name}'") as caught:
        films.items.get("none")
    assert caught.value.metadata == {"item_id": "none", "catalog": films.catalog_name}
    with pytest.raises(dmesr.PictureNotFound):
        films.items.picture("0" * 64)


@pytest.mark.parametrize(
    ("ids", "message"),
    [("12", "one string"), (["1", 2], r"item_ids\[1\] is 2 of type int")],
)
def test_ids_that_are_none_are_refused(films: dmesr.Client, ids: list[str], message: str):
    with pytest.raises(dmesr.InvalidInput, match=message):
        films.items.get_many(ids)
    with pytest.raises(dmesr.InvalidInput, match="item_id is ''"):
        films.items.get("")


def test_catalogs_are_apart(films: dmesr.Client):
    films.items.upsert([Item("1")])
    other = f"{films.catalog_name}-2"
    films.admin.create_catalog(other)
    games = films.catalog(other)
    assert (films.items.count(), games.items.count()) == (1, 0)
    with pytest.raises(dmesr.CatalogNotFound):
        films.catalog("nowhere").items.upsert([Item("1")])


def test_memory_stays_bounded(films: dmesr.Client):
    """A stream of 30 MB passes through with a few batches held at a time."""

    def items() -> Iterator[Item]:
        for number in range(600):
            yield Item(str(number), {"text": f"{number:06}" * 8_000})

    tracemalloc.start()
    try:
        films.items.upsert(items(), batch_size=10)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 15 * 1024 * 1024


async def test_the_async_face(sdk_server: RunningServer, films: dmesr.Client, png: Png):
    async with dmesr.aio.connect(sdk_server.address, catalog=films.catalog_name) as client:
        summary = await client.items.upsert([Item("1", {"title": "A"}, picture=png("red")), Item("2")])
        assert summary.inserted == 2
        assert [item.item_id async for item in client.items.list()] == ["1", "2"]
        item = await client.items.get("1")
        assert await client.items.picture(str(item.picture)) == png("red")
        assert await client.items.count() == 2
        assert await client.items.delete(["2", "3"]) == dmesr.DeleteSummary(1, ("3",))
        with pytest.raises(dmesr.ItemNotFound):
            await client.catalog(films.catalog_name).items.get("2")
