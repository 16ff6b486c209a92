"""A server for a whole module, without an enricher, and raw stubs."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from dmesr.v1 import admin_pb2
from enriching import tiny_encoder, world  # noqa: F401 - fixtures of enrichment's tests
from postgresql import Cluster, programs
from running_server import RunningServer
from wire import Stubs


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Cluster]:
    """A running PostgreSQL."""
    found = programs()
    if found is None:
        pytest.skip("no PostgreSQL here: install Debian's package `postgresql`")
    cluster = Cluster(found)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def control_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty control database, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'control.sqlite'}"
    cluster: Cluster = request.getfixturevalue("postgresql")
    return cluster.new_database()


@pytest.fixture(scope="module")
def picture_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one folder from which the module's server reads pictures."""
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def api_server(tmp_path_factory: pytest.TempPathFactory, picture_root: Path) -> Iterator[RunningServer]:
    """An API process for the module."""
    server = RunningServer(
        tmp_path_factory.mktemp("server"),
        enricher=False,
        server__picture_roots=[str(picture_root)],
        limits__max_items_per_batch=500,
        limits__max_ids_per_call=2_000,
        limits__max_picture_bytes=6 * 1024 * 1024,
        limits__max_picture_pixels=1_000_000,
        limits__max_k=50,
        limits__max_histories_per_call=20,
    )
    yield server.start()
    server.stop()


@pytest.fixture(scope="module")
def stubs(api_server: RunningServer) -> Iterator[Stubs]:
    """The services of `api_server`."""
    with grpc.insecure_channel(api_server.address) as channel:
        yield Stubs.of(channel)


@pytest.fixture
def catalog(stubs: Stubs) -> str:
    """A fresh catalog of the module's server."""
    name = f"c-{uuid.uuid4().hex[:12]}"
    stubs.admin.CreateCatalog(admin_pb2.CreateCatalogRequest(name=name))
    return name
