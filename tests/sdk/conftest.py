"""One real server for all tests of the SDK, its limits low enough to be met, and for each test a catalog of its own."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import dmesr
import pytest
from PIL import Image
from running_server import RunningServer

from .peer import Peer, running_peer


@pytest.fixture
def peer() -> Iterator[Peer]:
    with running_peer() as running:
        yield running


@pytest.fixture(scope="session")
def picture_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one folder from which the server reads pictures."""
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="session")
def sdk_server(tmp_path_factory: pytest.TempPathFactory, picture_root: Path) -> Iterator[RunningServer]:
    """A server with its enricher."""
    server = RunningServer(
        tmp_path_factory.mktemp("sdk-server"),
        server__picture_roots=[str(picture_root)],
        limits__max_items_per_batch=40,
        limits__max_ids_per_call=50,
        limits__max_histories_per_call=4,
        limits__max_picture_bytes=6 * 1024 * 1024,
        limits__max_picture_pixels=4_000_000,
        enrichment__poll_seconds=0.05,
    )
    yield server.start()
    server.stop()


@pytest.fixture
def films(sdk_server: RunningServer) -> Iterator[dmesr.Client]:
    """A client of a fresh catalog."""
    name = f"films-{uuid.uuid4().hex[:12]}"
    with dmesr.connect(sdk_server.address, catalog=name) as client:
        client.admin.create_catalog(name, domain="film")
        yield client


@pytest.fixture
def png() -> Callable[..., bytes]:
    """Makes pictures: `png("red", size=(8, 8))`."""

    def make(colour: str, *, size: tuple[int, int] = (8, 8)) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", size, colour).save(buffer, "PNG")
        return buffer.getvalue()

    return make
