"""Health tells which services can answer, while the stores go and come back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from dmesr.v1 import admin_pb2
from running_server import RunningServer
from wire import Stubs, eventually, failure_of, serving

RECOMMENDATIONS, ITEMS = "dmesr.v1.RecommendationService", "dmesr.v1.ItemService"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path, enricher=False, store__control_url=f"sqlite:///{tmp_path / 'control.sqlite'}")
    yield running.start()
    running.stop()


def _becomes(channel: grpc.Channel, expected: dict[str, bool]) -> None:
    eventually(lambda: {name: serving(channel, name) for name in expected} == expected, seconds=30)


def test_without_its_folder_only_recommendations_go_on_and_all_do_when_it_is_back(server: RunningServer):
    away = server.store.with_name("away")
    with grpc.insecure_channel(server.address) as channel:
        _becomes(channel, {"": True, RECOMMENDATIONS: True, ITEMS: True})
        server.store.rename(away)
        _becomes(channel, {"": False, RECOMMENDATIONS: True, ITEMS: False})
        assert not server.store.exists(), "a look has made the folder anew"
        away.rename(server.store)
        _becomes(channel, {"": True, RECOMMENDATIONS: True, ITEMS: True})
        Stubs.of(channel).admin.CreateCatalog(admin_pb2.CreateCatalogRequest(name="films"))
    assert "there is no store at" in server.log
    assert "SERVING again" in server.log


def test_with_a_ruined_control_database_nothing_serves_and_the_process_lives(server: RunningServer, tmp_path: Path):
    with grpc.insecure_channel(server.address) as channel:
        _becomes(channel, {"": True, RECOMMENDATIONS: True, ITEMS: True})
        for file in ("control.sqlite", "control.sqlite-wal"):
            (tmp_path / file).write_bytes(b"rubbish" * 4_000)
        _becomes(channel, {"": False, RECOMMENDATIONS: False, ITEMS: False})
    assert "the control database" in server.log


def test_a_control_database_that_is_moved_away_takes_no_write_until_it_is_back(server: RunningServer, tmp_path: Path):
    file, away = tmp_path / "control.sqlite", tmp_path / "away.sqlite"
    with grpc.insecure_channel(server.address) as channel:
        admin = Stubs.of(channel).admin
        file.rename(away)
        refused = failure_of(lambda: admin.CreateCatalog(admin_pb2.CreateCatalogRequest(name="films")))
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        _becomes(channel, {"": False, RECOMMENDATIONS: False, ITEMS: False})
        assert not file.exists(), "a look has made the file anew"
        away.rename(file)
        _becomes(channel, {"": True, RECOMMENDATIONS: True, ITEMS: True})
        admin.CreateCatalog(admin_pb2.CreateCatalogRequest(name="films"))


def test_nothing_is_written_into_a_control_database_that_was_replaced(server: RunningServer, tmp_path: Path):
    file, other = tmp_path / "control.sqlite", tmp_path / "other.sqlite"
    other.write_bytes(file.read_bytes())
    with grpc.insecure_channel(server.address) as channel:
        other.rename(file)
        _becomes(channel, {"": False, RECOMMENDATIONS: False, ITEMS: False})
        admin = Stubs.of(channel).admin
        refused = failure_of(lambda: admin.CreateCatalog(admin_pb2.CreateCatalogRequest(name="films")))
        assert refused.reason == "STORE_UNAVAILABLE"
        assert "restart the server" in refused.message
