"""Fixtures that every floor uses: a real server on a free port and a client of it."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from running_server import RunningServer

if TYPE_CHECKING:
    import dmesr

# A shell starts what runs in its background with Ctrl-C ignored, and whatever that starts ignores it too. Tests that
# press it want it heard.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., RunningServer]]:
    """Starts servers: `start_server(enricher=False, enrichment__auto=True)`. All are stopped after the test."""
    started: list[RunningServer] = []
    numbers = itertools.count()

    def start(*, enricher: bool = True, **config: Any) -> RunningServer:
        server = RunningServer(tmp_path / f"server-{next(numbers)}", enricher=enricher, **config)
        started.append(server)
        return server.start()

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def server(start_server: Callable[..., RunningServer]) -> RunningServer:
    """A server with its enricher and an empty store of its own."""
    return start_server()


@pytest.fixture
def client(server: RunningServer) -> Iterator[dmesr.Client]:
    """A client of `server`."""
    import dmesr

    with dmesr.connect(server.address) as connected:
        yield connected
