from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from dmesr_server.errors import ServiceError
from dmesr_server.store import SCHEMA_VERSION, DeleteOutcome, DescriptionRow, ItemWrite, Store
from dmesr_server.store.database import decoded, encoded, translated
from hypothesis import given
from hypothesis import strategies as st
from store_workers import column, upsert_for_ever


def item(item_id: str, title: str = "t") -> ItemWrite:
    return ItemWrite(item_id, (("title", (title,)),), None)


def lance_table(tmp_path: Path, name: str):
    return lancedb.connect(str(tmp_path / "catalogs" / "films")).open_table(name)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_names_are_encoded_one_for_one(name):
    safe = encoded(name)
    assert decoded(safe) == name
    assert not set(safe) - set("abcdefghijklmnopqrstuvwxyz0123456789_")


def test_catalogs_are_kept_apart(tmp_path):
    store = Store(uri=str(tmp_path))
    names = ["films", "games", "fil-ms", "fil_ms", "fil_2dms"]
    for name in names:
        catalog = store.catalog(name)
        catalog.items.upsert([item("a", name)])
        catalog.embeddings("r").declare("text", 2)
        catalog.embeddings("r").upsert(["a"], {"text": column([[len(name), 0]], [name])})
        catalog.pictures.put("00" * 32, name.encode(), "image/png", 1, 1)
        catalog.descriptions.upsert([DescriptionRow("a", "text", "d", "h", name)])
    for name in names:
        catalog = Store(uri=str(tmp_path)).catalog(name)
        assert catalog.items.get(["a"])["a"].attributes == (("title", (name,)),)
        assert catalog.embeddings("r").hashes(["a"]) == {"a": {"text": name}}
        assert catalog.pictures.get("00" * 32).data == name.encode()
        assert catalog.descriptions.get(["a"], ["d"])[0].text == name
    store.drop_catalog("fil_ms")
    assert store.catalog("fil_ms").stats() == []
    assert all(store.catalog(name).items.count() == 1 for name in names if name != "fil_ms")
    store.drop_catalog("never there")
    store.close()


def test_deleting_items_takes_all_that_hangs_on_them(tmp_path):
    catalog = Store(uri=str(tmp_path)).catalog("films")
    catalog.items.upsert([item("a"), item("it's"), item("c")])
    catalog.descriptions.upsert([DescriptionRow(i, r, r, "h", "t") for i in ("a", "it's") for r in ("text", "image")])
    for recipe in ("r1", "r2"):
        catalog.embeddings(recipe).declare("text", 2)
        catalog.embeddings(recipe).upsert(["a", "it's"], {"text": column([[1, 2]] * 2, ["h"] * 2)})
    catalog.adapted("m:1", 3).upsert(["it's", "c"], np.ones((2, 3), np.float32), ["1", "2"])
    catalog.pictures.put("00" * 32, b"x", "image/png", 1, 1)

    # Another process's store knows of no recipe and no model until it looks.
    other = Store(uri=str(tmp_path)).catalog("films")
    assert other.delete_items(["it's", "nobody", "it's"]) == DeleteOutcome(deleted=1, missing=["nobody"])
    assert catalog.items.existing(["a", "it's", "c"]) == {"a", "c"}
    assert {row.item_id for row in catalog.descriptions.get(["a", "it's"], ["text", "image"])} == {"a"}
    for recipe in ("r1", "r2"):
        assert list(catalog.embeddings(recipe).hashes(["a", "it's"])) == ["a"]
    assert catalog.adapted("m:1").read_all()[0] == ["c"]
    assert catalog.pictures.count() == 1
    assert other.delete_items(["nobody"]) == DeleteOutcome(deleted=0, missing=["nobody"])


def test_stats_tell_what_is_there(tmp_path):
    catalog = Store(uri=str(tmp_path)).catalog("films")
    assert catalog.stats() == []
    catalog.items.upsert([item("a"), item("b")])
    catalog.embeddings("r").declare("text", 2)
    items, vectors = sorted(catalog.stats(), key=lambda stats: stats.name, reverse=True)
    assert (items.name, items.rows, vectors.name, vectors.rows) == ("items", 2, "embeddings_r", 0)
    assert items.version == catalog.items.version()
    files = [file for file in (tmp_path / "catalogs/films/items.lance").rglob("*") if file.is_file()]
    assert (items.files, items.bytes) == (len(files), sum(file.stat().st_size for file in files))


def test_stats_of_a_store_that_is_no_folder_tell_the_bytes_of_its_rows(tmp_path):
    catalog = Store(uri=f"file://{tmp_path}").catalog("films")
    catalog.items.upsert([item(f"i{number}", "t" * 1_000) for number in range(100)])
    (items,) = catalog.stats()
    assert (items.rows, items.files) == (100, 0)
    on_disk = sum(file.stat().st_size for file in tmp_path.glob("**/items.lance/data/*"))
    assert on_disk / 2 < items.bytes < on_disk * 2


def test_a_catalog_dropped_and_made_again_behind_our_back(tmp_path):
    ours, theirs = Store(uri=str(tmp_path)), Store(uri=str(tmp_path))
    catalog = ours.catalog("films")
    for number in range(4):
        catalog.items.upsert([item(f"old-{number}")])
    catalog.embeddings("r").declare("text", 2)
    assert len(catalog.items.page(None, 10)) == 4
    theirs.drop_catalog("films")
    assert (catalog.items.count(), catalog.items.page(None, 10), catalog.embeddings("r").count()) == (0, [], 0)
    theirs.catalog("films").items.upsert([item("new")])
    assert [found.item_id for found in catalog.items.page(None, 10)] == ["new"]
    theirs.drop_catalog("films")
    assert catalog.items.upsert([item("x")]) == ["inserted"]
    for number in range(3):  # versions are as high again as those of the table that was
        catalog.items.upsert([item(f"y-{number}")])
    assert [found.item_id for found in catalog.items.page(None, 10)] == ["x", "y-0", "y-1", "y-2"]


def test_a_store_of_a_newer_version_is_refused(tmp_path):
    assert Store(uri=str(tmp_path)).schema_version == SCHEMA_VERSION
    assert Store(uri=str(tmp_path)).schema_version == SCHEMA_VERSION
    lancedb.connect(str(tmp_path)).open_table("dmesr_store").update(values={"schema_version": SCHEMA_VERSION + 1})
    with pytest.raises(ServiceError) as caught:
        Store(uri=str(tmp_path))
    assert caught.value.reason == "STORE_UNAVAILABLE"
    assert "newer version" in caught.value.message
    assert caught.value.metadata["actual"] == str(SCHEMA_VERSION + 1)


def test_a_store_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ServiceError) as caught:
        Store(uri=str(tmp_path / "file"))
    assert caught.value.reason == "STORE_UNAVAILABLE"
    assert str(tmp_path / "file") in caught.value.message


def test_a_table_whose_files_are_broken(tmp_path):
    catalog = Store(uri=str(tmp_path)).catalog("films")
    catalog.items.upsert([item("a")])
    for file in (tmp_path / "catalogs/films/items.lance/data").iterdir():
        file.write_bytes(b"rubbish")
    with pytest.raises(ServiceError) as caught:
        Store(uri=str(tmp_path)).catalog("films").items.get(["a"])
    assert caught.value.reason == "STORE_UNAVAILABLE"
    assert "/.cargo/" not in caught.value.message


def test_house_keeping_follows_writing(tmp_path):
    catalog = Store(uri=str(tmp_path)).catalog("films")
    for number in range(45):
        catalog.items.upsert([item(f"i{number}")])
    table = lance_table(tmp_path, "items")
    assert table.stats()["fragment_stats"]["num_fragments"] < 20
    assert table.index_stats("item_id_idx").num_unindexed_rows < 20
    assert catalog.items.count() == 45


def test_house_keeping_makes_an_index_that_is_not_there(tmp_path):
    """As after two writers made the table at once, and the index of neither was taken."""
    catalog = Store(uri=str(tmp_path)).catalog("films")
    catalog.items.upsert([item("a")])
    lance_table(tmp_path, "items").drop_index("item_id_idx")
    catalog.items.optimise()
    assert lance_table(tmp_path, "items").index_stats("item_id_idx").num_indexed_rows == 1


def test_house_keeping_waits_for_a_table_to_grow(tmp_path):
    """Else each 20 small writes would rewrite a large table."""
    catalog = Store(uri=str(tmp_path)).catalog("films")
    catalog.items.upsert([item(f"old-{number}") for number in range(1_000)])
    catalog.items.optimise()
    for number in range(30):
        catalog.items.upsert([item(f"i{number}")])
    assert lance_table(tmp_path, "items").stats()["fragment_stats"]["num_fragments"] == 31


def test_house_keeping_keeps_what_is_pinned(tmp_path, monkeypatch):
    monkeypatch.setattr("dmesr_server.store.tables.KEEP_VERSIONS", timedelta(milliseconds=1))
    store = Store(uri=str(tmp_path))
    table = store.catalog("films").embeddings("r")
    table.declare("text", 2)
    table.upsert(["a"], {"text": column([[1, 1]], ["1"])})
    pinned, digest = table.version(), table.digest()
    table.pin("pin/ü'1", pinned)
    table.pin("pin/ü'1", pinned)
    table.pin("second", pinned)
    for number in range(3):
        table.upsert(["a", f"b{number}"], {"text": column([[2, 2]] * 2, [f"{number}"] * 2)})
    unpinned = table.version()
    Store(uri=str(tmp_path)).catalog("films").embeddings("r").optimise()
    table.upsert(["a"], {"text": column([[3, 3]], ["last"])})
    assert table.take(["a", "b0"], ["text"], version=pinned).to_pylist() == [
        {"item_id": "a", "found": True, "text": [1, 1]},
        {"item_id": "b0", "found": False, "text": None},
    ]
    assert table.digest(pinned) == digest
    assert lance_table(tmp_path, "embeddings_r").index_stats("item_id_idx").num_unindexed_rows <= 1

    table.unpin("pin/ü'1")
    table.optimise()
    assert table.digest(pinned) == digest, "the second pin still holds it"
    table.unpin("second")
    table.unpin("never there")
    table.optimise()
    for version in (pinned, unpinned):
        with pytest.raises(ServiceError) as caught:
            list(table.scan(["text"], version=version))
        assert caught.value.reason == "VERSION_NOT_FOUND"
        with pytest.raises(ServiceError) as caught:
            table.pin("late", version)
        assert caught.value.reason == "VERSION_NOT_FOUND"
    assert table.take(["a"], ["text"])["text"].to_pylist() == [[3, 3]]


def test_a_version_that_goes_away_while_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("dmesr_server.store.tables.KEEP_VERSIONS", timedelta(milliseconds=1))
    monkeypatch.setattr("dmesr_server.store.scans.WINDOW_BYTES", -1)  # one range after the other
    monkeypatch.setattr("dmesr_server.store.scans.STEP_BYTES", 100)
    table = Store(uri=str(tmp_path)).catalog("films").embeddings("r")
    table.declare("text", 20)
    for number in range(10):
        table.upsert([f"i{number}"], {"text": column([[number] * 20], ["h"])})
    scan = table.scan(["text"], batch_bytes=100)
    assert next(scan).num_rows == 1
    table.upsert(["i9"], {"text": column([[0] * 20], ["x"])})
    table.optimise()
    table.optimise()
    with pytest.raises(ServiceError) as caught:
        list(scan)
    assert caught.value.reason == "VERSION_NOT_FOUND"
    assert "pin" in caught.value.message


def test_a_writer_that_is_killed_leaves_whole_tables(tmp_path):
    ids = [f"i{number:03d}" for number in range(100)]
    catalog = Store(uri=str(tmp_path)).catalog("films")
    table = catalog.embeddings("r1")
    writer = multiprocessing.get_context("spawn").Process(target=upsert_for_ever, args=(str(tmp_path), ids))
    writer.start()
    deadline = time.monotonic() + 180
    while table.count() < 50:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    writer.kill()
    writer.join()
    writer.close()
    assert [batch.num_rows for batch in table.scan(["text"])] == [table.count()]
    catalog.items.upsert([item(item_id) for item_id in ids])
    table.upsert(ids, {"text": column(np.ones((100, 16)), ["new"] * 100)})
    catalog.optimise()
    assert [found.item_id for found in catalog.items.page(None, 1_000)] == ids
    assert [batch["item_id"].to_pylist() for batch in table.scan(["text"])] == [ids]
    assert {hashes["text"] for hashes in table.hashes(ids).values()} == {"new"}


@contextlib.contextmanager
def tiny_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk takes root and the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(tmp_path):
    with tiny_disk(tmp_path / "disk", "4m"):
        catalog = Store(uri=str(tmp_path / "disk" / "store")).catalog("films")
        catalog.items.upsert([item("a")])

        def fill() -> None:
            for number in range(20):
                catalog.pictures.put(f"{number:064x}", os.urandom(700_000), "image/png", 1, 1)

        with pytest.raises(ServiceError) as caught:
            fill()
        assert caught.value.reason == "STORE_FULL"
        assert "free some space" in caught.value.message
        kept = catalog.pictures.count()
        assert 1 <= kept < 20, "what was written before is there, and no more"
        assert all(catalog.pictures.get(f"{number:064x}") is not None for number in range(kept))
        assert catalog.items.existing(["a"]) == {"a"}


def test_a_full_disk_by_lances_own_words():
    """For machines that may mount nothing: the text of the fault that lance raises there."""
    text = "lance error: LanceError(IO): No space left on device (os error 28), /root/.cargo/registry/src/x.rs:258:9"
    with pytest.raises(ServiceError) as caught, translated("writing"):
        raise RuntimeError(text)
    assert caught.value.reason == "STORE_FULL"
    with pytest.raises(ServiceError) as caught, translated("writing"):
        raise pa.ArrowIOError("Permission denied")
    assert caught.value.reason == "STORE_UNAVAILABLE"
