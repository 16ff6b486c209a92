"""A server whose control database is a real PostgreSQL: whole jobs, its death and return, a log that only grows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dmesr
import grpc
import pytest
import sqlalchemy as sa
from postgresql import Cluster, opened
from running_server import RunningServer
from wire import eventually, serving

ITEMS = [dmesr.Item(f"i{number:03d}", {"title": f"Film {number}"}) for number in range(40)]


@pytest.fixture
def url(postgresql: Cluster) -> str:
    return postgresql.new_database()


@pytest.fixture
def server(tmp_path: Path, url: str) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path, store__control_url=url)
    yield running.start()
    running.stop()


def _serving(server: RunningServer) -> bool:
    with grpc.insecure_channel(server.address) as channel:
        return serving(channel)


def test_a_job_runs_by_it_and_both_processes_may_die(server: RunningServer):
    with dmesr.connect(server.address) as client:
        client.items.upsert(ITEMS)
        job = client.enrichment.start()
        server.kill()
        server.start()
        eventually(lambda: _serving(server), seconds=30)
        assert client.enrichment.get(job.job_id).wait().state == "SUCCEEDED"
        assert len(client.embeddings.read(recipe="default").ids) == len(ITEMS)
    assert not list(server.store.glob("control.sqlite*")), "something was kept in SQLite"


def test_while_it_is_away_callers_are_told_and_when_it_is_back_all_goes_on(server: RunningServer, postgresql: Cluster):
    with dmesr.connect(server.address) as client:
        client.items.upsert(ITEMS)
        postgresql.stop()
        try:
            with pytest.raises(dmesr.Unavailable) as refused:
                client.admin.create_catalog("films")
            assert "control database" in str(refused.value)
            assert "dmesr@" in str(refused.value)
            eventually(lambda: not _serving(server), seconds=30)
        finally:
            postgresql.start()

        def works() -> bool:
            try:
                client.admin.create_catalog("films")
            except dmesr.AlreadyExists:
                return True
            except dmesr.DmesrError:
                return False
            return True

        eventually(works, seconds=30)
        assert client.enrichment.start().wait().state == "SUCCEEDED"
        eventually(lambda: _serving(server), seconds=30)


def test_the_database_itself_refuses_to_change_the_log(server: RunningServer, url: str):
    with dmesr.connect(server.address) as client:
        client.admin.create_catalog("films")
    for table in ("audit_entries", "audit_outcomes"):
        for change in (f"DELETE FROM {table}", f"UPDATE {table} SET number = number + 100"):
            with opened(url) as connection, pytest.raises(sa.exc.DBAPIError, match="only grows"):
                connection.execute(sa.text(change))


def test_an_address_where_nothing_answers_is_told_at_the_start(tmp_path: Path):
    with pytest.raises(AssertionError, match="control database") as failed:
        RunningServer(tmp_path, store__control_url=f"postgresql://dmesr:secret@/none?host={tmp_path}").start()
    assert "secret" not in str(failed.value)
