from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from dmesr_server.control import Control, schema
from dmesr_server.errors import ServiceError
from store_workers import in_processes, in_threads, migrate


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'folder' / 'control.sqlite'}"


def test_migrating_makes_the_tables_that_the_code_knows(url):
    control = Control(url)
    control.migrate()
    control.migrate()
    control.close()
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
    engine.dispose()


def test_threads_and_processes_migrate_at_once(tmp_path):
    for act, name in ((in_threads, "threads"), (in_processes, "processes")):
        url = f"sqlite:///{tmp_path / name}.sqlite"
        assert act(migrate, [(url,)] * 3) == [["default"]] * 3


def test_a_new_file_that_another_process_is_writing_is_waited_for(tmp_path):
    """SQLite refuses at once to give a file its log while another writes, whatever time a connection is given."""
    file = tmp_path / "control.sqlite"
    holder = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.5, holder.rollback)
    release.start()
    assert migrate(f"sqlite:///{file}") == ["default"]
    release.join()
    holder.close()


def test_a_database_of_a_newer_version_is_refused(tmp_path, url):
    control = Control(url)
    control.migrate()
    control.close()
    with sqlite3.connect(tmp_path / "folder" / "control.sqlite") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(ServiceError) as caught:
        in_processes(migrate, [(url,)])  # where it is raised in another process, it arrives whole
    assert caught.value.reason == "STORE_UNAVAILABLE"
    assert "newer version" in caught.value.message
    assert str(caught.value) == caught.value.message
    assert caught.value.metadata["actual"] == "9999"


@pytest.mark.parametrize(
    "url", ["no url", "oracle9://host/db", "sqlite://", "sqlite:///:memory:", "sqlite:////proc/no/such.sqlite"]
)
def test_urls_that_cannot_be_used(url):
    with pytest.raises(ServiceError) as caught:
        Control(url)
    assert caught.value.reason == "STORE_UNAVAILABLE"


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "control.sqlite").write_bytes(b"rubbish" * 1_000)
    control = Control(f"sqlite:///{tmp_path / 'control.sqlite'}")
    with pytest.raises(ServiceError) as caught:
        control.migrate()
    control.close()
    assert caught.value.reason == "STORE_UNAVAILABLE"


def test_a_full_disk(tmp_path, url):
    """SQLite says of a page limit what it says of a full disk."""
    control = Control(url)
    control.migrate()
    control.catalogs.ensure_default()

    @sa.event.listens_for(sa.engine.Engine, "begin")
    def limit(connection: sa.Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")

    try:
        with pytest.raises(ServiceError) as caught:
            control.jobs.create("default", {"note": "x" * 1_000_000}, "r", "d", "e")
    finally:
        sa.event.remove(sa.engine.Engine, "begin", limit)
    assert caught.value.reason == "STORE_FULL"
    assert control.jobs.list() == []
    control.close()


def test_passwords_are_not_shown():
    control = Control("sqlite:////tmp/never-opened.sqlite")
    control.close()
    with pytest.raises(ServiceError) as caught:
        Control("nosuchdriver://user:secret@host/db")
    assert "secret" not in caught.value.message
