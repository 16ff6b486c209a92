"""`store check`: silent over a sound store, also under writes; all damage is named, and what to do about it."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import dmesr
import grpc
import lancedb
import numpy as np
import pytest
import tiny_artefact
from PIL import Image
from published import LEARNED, fill, promote, publish
from running_server import RunningServer
from wire import Stubs, eventually


def _picture(colour: str) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with everything in it: pictures, a job's descriptions and vectors, a client's vectors, a model."""
    server = RunningServer(tmp_path_factory.mktemp("made")).start()
    try:
        with grpc.insecure_channel(server.address) as channel, dmesr.connect(server.address) as client:
            stubs = Stubs.of(channel)
            artefact = tmp_path_factory.mktemp("model") / "v1"
            publish(stubs, "", tiny_artefact.write(artefact, recipe_id=fill(stubs, ""), items=LEARNED))
            promote(stubs, "", "tiny:1")
            client.items.upsert([dmesr.Item("red", {"title": "R"}, picture=_picture("red"))])
            client.items.upsert([dmesr.Item("blue", {"title": "B"}, picture=_picture("blue"))])
            client.enrichment.start().wait()
            report = client.admin.check_store()
            assert report.findings == ()
            assert report.sound
            assert (report.catalogs, report.models) == (1, 1)
            tables = client.admin.store_stats().tables
            assert (report.tables, report.rows) == (len(tables), sum(table.rows for table in tables))
    finally:
        server.stop()
    return server.store


@pytest.fixture
def server(made: Path, tmp_path: Path) -> Iterator[RunningServer]:
    """A server that does not run yet, on a copy of that store."""
    running = RunningServer(tmp_path, enricher=False)
    shutil.copytree(made, running.store)
    with contextlib.closing(sqlite3.connect(running.store / "control.sqlite")) as database:
        place = str(running.store / "artefacts/default/tiny/1")
        database.execute("UPDATE models SET artefact_path = ?", (place,))
        database.commit()
    yield running
    running.stop()


def _tables(store: Path) -> lancedb.DBConnection:
    return lancedb.connect(store / "catalogs/default")


def _found(server: RunningServer) -> dict[tuple[str, str], dmesr.StoreFinding]:
    """The findings by their kind, and the place or what it begins with."""
    with dmesr.connect(server.address) as client:
        return {(one.kind, one.place.split("_")[0]): one for one in client.admin.check_store().findings}


def _own_vectors(database: lancedb.DBConnection) -> lancedb.table.Table:
    """The vectors that a client has written: those of another recipe were made by the job."""
    tables = [database.open_table(name) for name in database.list_tables().tables if name.startswith("embeddings_")]
    return min(tables, key=lambda table: len(table.schema.names))


def _control(store: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(store / "control.sqlite")) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


def test_rows_that_were_changed_or_lead_nowhere_are_told(server: RunningServer):
    tables = _tables(server.store)
    _own_vectors(tables).update(where="item_id = 'a'", values={"hash_text": "0" * 64})
    items = tables.open_table("items")
    items.update(where="item_id = 'd'", values={"attributes": '[["title",["other"]]]'})
    items.delete("item_id = 'b'")
    tables.open_table("pictures").delete("true")
    found = _found(server.start())
    assert set(found) == {
        ("WRONG_HASH", "items"),
        ("WRONG_HASH", "embeddings"),
        ("ORPHAN_ROWS", "descriptions"),
        ("ORPHAN_ROWS", "embeddings"),
        ("MISSING_PICTURES", "items"),
    }
    assert found["WRONG_HASH", "items"].examples == ("d",)
    assert found["WRONG_HASH", "embeddings"].examples == ("a",)
    assert found["ORPHAN_ROWS", "descriptions"].examples == ("b",)
    assert found["MISSING_PICTURES", "items"].examples == ("blue", "red")
    assert all(one.severity is dmesr.FindingSeverity.FAULT for one in found.values())
    # What the remedies say, works.
    with dmesr.connect(server.address) as client:
        client.items.delete(["b"])
        titles = {"d": "D", "red": "R", "blue": "B"}
        pictures = {"d": None, "red": _picture("red"), "blue": _picture("blue")}
        client.items.upsert([dmesr.Item(one, {"title": titles[one]}, picture=pictures[one]) for one in titles])
        client.embeddings.write(source="text", item_ids=["a"], vectors=np.eye(3, dtype=np.float32)[:1], recipe="ours")
        assert client.admin.check_store().findings == ()


def test_pointers_of_the_control_database_that_lead_nowhere_are_told(server: RunningServer):
    _control(
        server.store,
        "UPDATE aliases SET version = 9",
        "INSERT INTO alias_history (catalog, alias, name, version) VALUES ('default', 'production', 'gone', 1)",
        "INSERT INTO alias_splits VALUES ('default', 'production', 'nobody', 0.5, '2026-01-01 00:00:00')",
        "INSERT INTO recipe_names VALUES ('default', 'lost', 'none', '2026-01-01 00:00:00')",
        "UPDATE jobs SET recipe_id = 'none'",
        "DELETE FROM description_recipes",
        "INSERT INTO model_counters VALUES ('nowhere', 'm', 1)",
        "INSERT INTO pins VALUES ('p1', 'default', 'none', 3, 'me', 't', '2026-01-01 00:00:00', '2036-01-01 00:00:00')",
    )
    shutil.copytree(server.store / "artefacts/default/tiny/1", server.store / "artefacts/default/tiny/7")
    shutil.copytree(server.store / "catalogs/default", server.store / "catalogs/elsewhere")
    adapted = next((server.store / "catalogs/default").glob("adapted_*"))
    shutil.copytree(adapted, adapted.with_name("adapted_gone_3a1.lance"))
    found = _found(server.start())
    assert {kind for kind, _ in found} == {
        "DANGLING_ALIAS",
        "DANGLING_ALIAS_HISTORY",
        "DANGLING_SPLIT",
        "DANGLING_RECIPE_NAME",
        "ENDED_DANGLING_JOB",
        "RECIPE_WITHOUT_DESCRIPTIONS",
        "DESCRIPTIONS_WITHOUT_RECIPE",
        "RECORDS_WITHOUT_CATALOG",
        "LOST_PIN",
        "FOLDER_WITHOUT_MODEL",
        "FOLDER_WITHOUT_CATALOG",
        "TABLE_WITHOUT_MODEL",
    }
    assert all(one.problem and one.remedy for one in found.values())
    # And once an alias points somewhere again, nothing is told of it.
    with dmesr.connect(server.address) as client:
        client.models.promote("tiny:1")
        kinds = {one.kind for one in client.admin.check_store(catalog="default", quick=True).findings}
        assert not kinds & {"DANGLING_ALIAS", "FOLDER_WITHOUT_MODEL"}
        with pytest.raises(dmesr.CatalogNotFound):
            client.admin.check_store(catalog="nowhere")


def test_damaged_and_missing_files_are_told_and_the_rest_goes_on(server: RunningServer, made: Path):
    folder = server.store / "catalogs/default"
    largest = max((folder / "descriptions.lance/data").iterdir(), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-100])
    for manifest in next(folder.glob("adapted_*")).glob("_versions/*"):
        manifest.unlink()
    artefact = server.store / "artefacts/default/tiny/1"
    content = bytearray((artefact / "user_tower.onnx").read_bytes())
    content[-1] ^= 1
    (artefact / "user_tower.onnx").write_bytes(content)
    (artefact / "items.arrow").unlink()
    found = _found(server.start())
    assert {kind for kind, _ in found} == {"UNREADABLE_TABLE", "MODEL_FILES"}
    assert found["MODEL_FILES", "tiny:1"].examples == ("items.arrow", "user_tower.onnx")
    assert "restore the store" in found["UNREADABLE_TABLE", "descriptions"].remedy
    remedy = found["UNREADABLE_TABLE", "adapted"].remedy
    assert f"remove the folder catalogs/default/{next(folder.glob('adapted_*')).name}" in remedy

    command = [sys.executable, "-m", "dmesr.cli", "--server", server.address, "store", "check"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert told.returncode == 1
    assert "fault MODEL_FILES in default tiny:1: " in told.stdout
    assert "1 catalogs" in told.stdout
    assert "3 faults, 0 leftovers" in told.stdout
    as_json = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=120).stdout)
    assert {one["kind"] for one in as_json["findings"]} == {"UNREADABLE_TABLE", "MODEL_FILES"}

    with dmesr.connect(server.address) as client:  # what has nothing to do with it goes on
        client.items.upsert([dmesr.Item("later", {"title": "L"})])
        assert client.items.get("later").attributes == {"title": ["L"]}
        with pytest.raises(dmesr.StoreUnavailable, match="store check"):
            client.enrichment.descriptions(["a"])
    assert "Traceback" not in server.log

    # What the remedies say, works: the vectors of a model are made anew.
    server.stop()
    shutil.rmtree(next(folder.glob("adapted_*")))
    for file in ("items.arrow", "user_tower.onnx"):
        shutil.copy(made / "artefacts/default/tiny/1" / file, artefact)
    server.start()
    eventually(lambda: {kind for kind, _ in _found(server)} == {"UNREADABLE_TABLE"}, seconds=60)
    with dmesr.connect(server.address) as client:
        assert len(client.recommend(history=["a"])) > 0


def test_writes_that_go_on_are_never_taken_for_faults(server: RunningServer):
    server.start()
    ended = threading.Event()
    vectors = np.ones((5, 4), np.float32)

    def write() -> None:
        with dmesr.connect(server.address) as client:
            number = 0
            while not ended.is_set():
                ids = [f"w{number % 3}-{one}" for one in range(5)]
                client.items.upsert([dmesr.Item(one, {"title": f"{number}"}, picture=_picture("green")) for one in ids])
                client.embeddings.write(
                    source="clip", item_ids=ids, vectors=vectors * number, recipe="own", create_recipe=True
                )
                client.items.delete(ids)
                number += 1

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        with dmesr.connect(server.address) as client:
            for _ in range(4):
                faults = [one for one in client.admin.check_store().findings if one.severity.value == "FAULT"]
                assert faults == []
    finally:
        ended.set()
        for writer in writers:
            writer.join()
    assert {kind for kind, _ in _found(server)} <= {"UNUSED_PICTURES"}
