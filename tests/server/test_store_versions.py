"""Stores of other versions: an older one is brought up to date with its old state kept, a newer one is refused."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import alembic.command
import alembic.config
import dmesr_server.control
import dmesr_server.errors
import grpc
import lancedb
import pytest
import sqlalchemy as sa
import tiny_artefact
from dmesr.v1 import recommendations_pb2
from dmesr_server.control import Control
from dmesr_server.store import ItemWrite, Step, Store
from dmesr_server.upkeep import restoring, snapshots
from dmesr_server.upkeep.restoring import RestoreError
from published import LEARNED, fill, promote, publish
from running_server import RunningServer
from wire import Stubs

MIGRATING = Path(__file__).with_name("migrating_process.py")
OLDEST, NEWEST = "0001", "0004"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A store of this version with a promoted model, and what it recommends."""
    server = RunningServer(tmp_path_factory.mktemp("made"), enricher=False).start()
    try:
        with grpc.insecure_channel(server.address) as channel:
            stubs = Stubs.of(channel)
            artefact = tmp_path_factory.mktemp("model") / "v1"
            publish(stubs, "", tiny_artefact.write(artefact, recipe_id=fill(stubs, ""), items=LEARNED))
            promote(stubs, "", "tiny:1")
        return server.store, _recommended(server)
    finally:
        server.stop()


@pytest.fixture
def server(made: tuple[Path, list[str]], tmp_path: Path) -> RunningServer:
    """A server that does not run yet, on a copy of that store."""
    server = RunningServer(tmp_path, enricher=False)
    shutil.copytree(made[0], server.store)
    return server


def _recommended(server: RunningServer) -> list[str]:
    with grpc.insecure_channel(server.address) as channel:
        request = recommendations_pb2.RecommendRequest(history=recommendations_pb2.History(item_ids=["a"]))
        answer = Stubs.of(channel).recommendations.Recommend(request)
    return [answer.model, *(found.item_id for found in answer.list.recommendations)]


def _make_old(file: Path) -> None:
    """Puts a database of the oldest revision in a database's place, with the rows that it has room for."""
    old = file.with_name("old.sqlite")
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(dmesr_server.control.__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    engine = sa.create_engine(f"sqlite:///{old}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, OLDEST)
    engine.dispose()
    with contextlib.closing(sqlite3.connect(old)) as database:
        database.execute("ATTACH DATABASE ? AS new", (str(file),))
        tables = [name for (name,) in database.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'")]
        for table in tables:
            if table not in ("alembic_version", "sqlite_sequence"):
                columns = ",".join(f'"{row[1]}"' for row in database.execute(f"PRAGMA main.table_info({table})"))
                database.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM new.{table}")
        database.commit()
    for suffix in ("", "-wal", "-shm"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)
    old.rename(file)


def _revision(file: Path) -> str:
    with contextlib.closing(sqlite3.connect(file)) as database:
        return str(database.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def _refused(server: RunningServer, *flags: str) -> str:
    command = [sys.executable, "-m", "dmesr_server", "serve", "--store", str(server.store), "--port", "0", *flags]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1, ran.stderr
    (line,) = ran.stderr.strip().splitlines()
    return line


def test_a_store_of_the_oldest_version_is_brought_up_to_date_and_kept_as_it_was(
    server: RunningServer, made: tuple[Path, list[str]]
):
    control = server.store / "control.sqlite"
    _make_old(control)
    replica = _refused(server, "--read-only")
    assert f"revision {OLDEST}, expected {NEWEST}" in replica
    assert "start the writing server of this version first" in replica
    assert _revision(control) == OLDEST

    server.start()
    try:
        assert _recommended(server) == made[1]
    finally:
        server.stop()
    assert _revision(control) == NEWEST
    kept = server.store / f"control.sqlite.{OLDEST}"
    assert _revision(kept) == OLDEST
    assert f"from revision {OLDEST} to {NEWEST}" in server.log
    assert str(kept) in server.log
    assert not list(server.store.glob(".control*"))


@pytest.mark.parametrize("flags", [(), ("--read-only",)], ids=["writing", "reading"])
def test_a_store_of_a_newer_version_is_refused_in_one_line(server: RunningServer, flags: tuple[str, ...]):
    with contextlib.closing(sqlite3.connect(server.store / "control.sqlite")) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        database.commit()
    line = _refused(server, *flags)
    assert f"newer version of this server (revision 9999, this server knows up to {NEWEST}): upgrade the server" in line

    marker = lancedb.connect(server.store).open_table("dmesr_store")
    marker.update(values={"schema_version": 7})
    line = _refused(server, *flags)
    assert "newer version of this server (schema 7, this server knows up to 1): upgrade the server" in line


def test_a_store_that_lost_its_version_is_not_taken_for_a_new_one(server: RunningServer):
    shutil.rmtree(server.store / "dmesr_store.lance")
    line = _refused(server)
    assert "has catalogs, but the table dmesr_store that tells its version is gone" in line
    assert not (server.store / "dmesr_store.lance").exists()


def _plain_store(folder: Path) -> tuple[Store, Control]:
    """A store of this version with one item, without a server."""
    store, control = Store(uri=str(folder)), Control(f"sqlite:///{folder / 'control.sqlite'}")
    control.migrate()
    control.catalogs.ensure_default()
    store.catalog("default").items.upsert([ItemWrite("a", (("title", ("A",)),), None)])
    return store, control


def _migrating(folder: Path, log: Path, *, dies_in: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, str(MIGRATING), str(folder), str(log), dies_in]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_a_migration_that_dies_goes_on_where_it_was_and_only_one_of_many_processes_does_it(tmp_path: Path):
    folder, log = tmp_path / "store", tmp_path / "log"
    _, control = _plain_store(folder)
    died = _migrating(folder, log, dies_in="second")
    _, told = died.communicate(timeout=120)
    assert died.returncode == -signal.SIGKILL, told
    assert log.read_text().split() == ["first", "second"]
    with contextlib.closing(sqlite3.connect(folder / "control.sqlite")) as database:  # as if its lease had run out
        database.execute("UPDATE leases SET expires = '2000-01-01 00:00:00' WHERE name = 'migrate-store'")
        database.commit()

    both = [_migrating(folder, log) for _ in range(2)]
    for process in both:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told
    assert log.read_text().split() == ["first", "second", "second", "third"]
    nothing = Step("nothing", lambda store, catalogs: None)
    store = Store(uri=str(folder), steps=[nothing] * 3)
    assert store.schema_version == 4
    assert [item.item_id for item in store.catalog("default").items.page(None, 10)] == ["a", "first", "second", "third"]
    with pytest.raises(dmesr_server.errors.ServiceError, match="schema 4, this server knows up to 1"):
        Store(uri=str(folder))
    with pytest.raises(
        dmesr_server.errors.ServiceError, match=r"schema 4, this server works with 5.*start the writing"
    ):
        Store(uri=str(folder), steps=[nothing] * 4, read_only=True)
    control.close()


def test_a_migration_of_the_control_database_that_dies_has_changed_nothing(tmp_path: Path):
    folder = tmp_path / "store"
    _, control = _plain_store(folder)
    control.close()
    _make_old(folder / "control.sqlite")
    died = _migrating(folder, tmp_path / "log", dies_in="CREATE TABLE tokens")
    _, told = died.communicate(timeout=120)
    assert died.returncode == -signal.SIGKILL, told
    assert _revision(folder / "control.sqlite") == OLDEST
    control = Control(f"sqlite:///{folder / 'control.sqlite'}")
    control.migrate()
    assert [row.name for row in control.catalogs.list()] == ["default"]
    assert control.tokens.list() == []
    control.close()
    assert _revision(folder / "control.sqlite") == NEWEST
    assert _revision(folder / f"control.sqlite.{OLDEST}") == OLDEST


def test_a_snapshot_carries_the_version_and_what_is_restored_has_that_one(tmp_path: Path):
    store, control = _plain_store(tmp_path / "store")
    snapshot = snapshots.make(
        store=store, control=control, artefacts=tmp_path / "none", folder=tmp_path / "monday", tell=lambda step: None
    ).folder
    control.close()
    restoring.restore(snapshot=snapshot, store=tmp_path / "again")
    step = Step("nothing", lambda store, catalogs: None)
    assert Store(uri=str(tmp_path / "again"), steps=[step]).schema_version == 1  # of the snapshot, not the program's
    contents = snapshot / "snapshot.json"
    contents.write_text(json.dumps(json.loads(contents.read_text()) | {"schema_version": 2}))
    with pytest.raises(RestoreError, match=r"newer version of this server \(format 1, schema 2; known are 1 and 1\)"):
        restoring.restore(snapshot=snapshot, store=tmp_path / "third")
    assert not (tmp_path / "third").exists()
