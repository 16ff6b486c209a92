from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
from dmesr_server.control import Control
from dmesr_server.errors import ServiceError
from store_workers import in_threads

SHORT = 0.05  # s
LONG = 1.0  # s: a lease that a loaded machine renews in time


@pytest.fixture
def leases(control_url):
    control = Control(control_url)
    control.migrate()
    yield control.leases
    control.close()


def lost(act, *arguments) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        act(*arguments)
    assert caught.value.reason == "LEASE_LOST"
    return caught.value


def test_one_holder_at_a_time(leases):
    lease = leases.acquire("adapt:films:m", "me", 60)
    assert (lease.name, lease.owner, lease.fence) == ("adapt:films:m", "me", 1)
    assert leases.acquire("adapt:films:m", "you", 60) is None
    assert leases.acquire("adapt:films:m", "me", 60) is None
    assert leases.acquire("adapt:films:other", "you", 60).fence == 1
    leases.check(lease)
    leases.release(lease)
    taken = leases.acquire("adapt:films:m", "you", 60)
    assert (taken.owner, taken.fence) == ("you", 2)


def test_a_late_holder_is_refused(leases):
    old = leases.acquire("x", "me", SHORT)
    time.sleep(SHORT * 1.5)
    leases.check(old)  # it slept, but nobody has taken its place
    new = leases.acquire("x", "you", 60)
    assert new.fence == old.fence + 1
    error = lost(leases.check, old)
    assert (error.metadata["holder"], error.metadata["fence"]) == ("you", "1")
    lost(leases.renew, old)
    leases.release(old)
    leases.check(new)


def test_the_fence_alone_tells_holders_of_one_name_apart(leases):
    old = leases.acquire("x", "me", 0)
    new = leases.acquire("x", "me", 60)
    lost(leases.check, old)
    leases.check(new)


def test_renewing_keeps_a_lease(leases):
    lease = leases.acquire("x", "me", LONG)
    for _ in range(3):
        time.sleep(0.4 * LONG)
        renewed = leases.renew(lease)
        assert renewed.expires > lease.expires
        lease = renewed
        assert leases.acquire("x", "you", 60) is None
    assert lease.fence == 1


def test_a_released_lease_is_lost(leases):
    lease = leases.acquire("x", "me", 60)
    leases.release(lease)
    leases.release(lease)
    assert lost(leases.check, lease).metadata["holder"] == "nobody"
    lost(leases.renew, lease)


def test_live_leases_by_prefix(leases):
    for name in ("enricher:b", "enricher:a", "enricher_x", "job:1", "enricher%"):
        leases.acquire(name, "me", 60)
    leases.acquire("enricher:gone", "me", 0)
    leases.release(leases.acquire("enricher:released", "me", 60))
    assert leases.live("enricher:") == ["enricher:a", "enricher:b"]
    assert leases.live("enricher_") == ["enricher_x"], "no wildcards"
    assert leases.live("enricher%") == ["enricher%"]
    assert leases.live("nobody") == []


@pytest.mark.parametrize("known_before", [False, True])
def test_threads_race_for_one_lease(leases, known_before):
    if known_before:
        leases.acquire("x", "before", 0)
    won = [lease for lease in in_threads(leases.acquire, [("x", f"t{n}", 60) for n in range(16)]) if lease]
    assert len(won) == 1
    leases.check(won[0])


def test_a_lease_of_a_clock_that_was_ahead_and_was_put_back_is_not_believed_for_as_long(leases, monkeypatch):
    hour = timedelta(hours=1)
    monkeypatch.setattr("dmesr_server.control.leases.now", lambda: datetime.now(UTC) + hour)
    old = leases.acquire("x", "dead", 60)
    assert leases.live("x") == ["x"]
    monkeypatch.undo()
    assert leases.live("x") == []
    new = leases.acquire("x", "you", 60)
    assert new.fence == old.fence + 1
    lost(leases.renew, old)
    # Put forward by an hour: who is alive keeps it by renewing, unless another was quicker.
    monkeypatch.setattr("dmesr_server.control.leases.now", lambda: datetime.now(UTC) + hour)
    leases.renew(new)
    assert leases.acquire("x", "me", 60) is None
    monkeypatch.undo()
    # Put back again: it still holds it for as long as nobody takes it, and renews by the clock of now.
    leases.renew(new)
    assert leases.acquire("x", "me", 60) is None


def test_clocks_of_hosts_may_be_a_little_apart(leases, monkeypatch):
    monkeypatch.setattr("dmesr_server.control.leases.now", lambda: datetime.now(UTC) + timedelta(seconds=30))
    leases.acquire("x", "ahead", 60)
    monkeypatch.undo()
    assert leases.acquire("x", "you", 60) is None
