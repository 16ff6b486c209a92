"""Calls that wait long to be seen make the server refuse some, and only for as long as they do."""

from __future__ import annotations

import time
from collections.abc import Callable

import grpc
import pytest
from dmesr.v1 import admin_pb2, items_pb2
from dmesr_server.api import intake as module
from dmesr_server.api.intake import Intake
from running_server import RunningServer
from wire import Stubs, failure_of, serving


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "time", found)
    return found


def test_the_share_grows_while_the_line_is_long_and_shrinks_after(clock: Clock):
    intake = Intake(most_seconds=0.5)
    assert not any(intake.refuses() for _ in range(100))

    intake.sent()
    clock.now += 0.4
    intake.look()  # not come yet, but not late either
    assert not any(intake.refuses() for _ in range(100))
    clock.now += 0.2
    intake.look()  # late, though it has not come yet: 0.15
    assert intake.seconds == pytest.approx(0.6)
    assert sum(intake.refuses() for _ in range(100)) == 15
    clock.now += 1.4
    intake.arrived()
    assert intake.seconds == pytest.approx(2.0)
    assert intake.hint_seconds == pytest.approx(4.0)
    for _ in range(10):
        intake.look()
        assert sum(intake.refuses() for _ in range(100)) <= 95  # never all
    assert sum(intake.refuses() for _ in range(1_000)) == pytest.approx(950, abs=1)

    intake.sent()
    clock.now += 0.01
    intake.arrived()
    intake.look()  # 0.9
    assert sum(intake.refuses() for _ in range(1_000)) == pytest.approx(900, abs=1)
    for _ in range(18):
        intake.look()
    assert not any(intake.refuses() for _ in range(100))


def test_where_hardly_anybody_calls_there_is_no_line(clock: Clock):
    intake = Intake(most_seconds=0.5)
    intake.sent()
    clock.now += 60
    for _ in range(50):
        assert not any(intake.refuses() for _ in range(9))
        intake.look()


def test_one_that_is_lost_is_no_line(clock: Clock):
    intake = Intake(most_seconds=0.5)
    intake.sent()
    intake.lost()
    clock.now += 60
    intake.look()
    assert intake.seconds == 0
    assert not any(intake.refuses() for _ in range(100))


def test_a_server_whose_line_is_long_refuses_and_says_when_to_return(start_server: Callable[..., RunningServer]):
    """A bound that no machine keeps stands in for a long line."""
    server = start_server(enricher=False, admission__intake_seconds=1e-6)
    with grpc.insecure_channel(server.address) as channel:
        stubs = Stubs.of(channel)
        deadline = time.monotonic() + 60
        refused = None
        while refused is None:
            assert time.monotonic() < deadline, "nothing was refused"
            try:
                stubs.items.ListItems(items_pb2.ListItemsRequest())
            except grpc.RpcError:
                refused = failure_of(lambda: [stubs.items.ListItems(items_pb2.ListItemsRequest()) for _ in range(100)])
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert refused.metadata["kind"] == "reads"
        assert "before it sees them; try again in" in refused.message
        for _ in range(100):  # never refused
            assert serving(channel)
            stubs.admin.GetServerInfo(admin_pb2.GetServerInfoRequest())
    assert server.log.count("calls wait") == 1
    assert "Traceback" not in server.log


def test_a_server_at_rest_refuses_nothing(server: RunningServer):
    with grpc.insecure_channel(server.address) as channel:
        stubs = Stubs.of(channel)
        end = time.monotonic() + 1.5  # several looks
        while time.monotonic() < end:
            stubs.items.ListItems(items_pb2.ListItemsRequest())
    assert "calls wait" not in server.log
