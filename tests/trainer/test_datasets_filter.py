"""Users and items with few events are left out (§4.1.1); by hand, and beside a plain loop."""

from __future__ import annotations

from collections import Counter
from datetime import date

import numpy as np
import pytest
from dmesr_trainer.datasets import DatasetError
from dmesr_trainer.datasets.events import CoreFilter, Event, FilteredEvents, Period

DAY = 86_400


def filtered(
    pairs: list[tuple[str, str]], *, users: int, items: int, until_stable: bool = True
) -> tuple[list[tuple[str, str]], FilteredEvents]:
    core = CoreFilter(min_user_events=users, min_item_events=items, until_stable=until_stable)
    rows = [Event(user, item, time) for time, (user, item) in enumerate(pairs)]
    events = FilteredEvents(lambda: iter(rows), core=core, period=Period(), name="test")
    left = events.interactions
    return list(zip(left.user_ids.tolist(), left.item_ids.tolist(), strict=True)), events


# c has one event; without it v has one; without v's, b has one; and without that, x has one.
CHAIN = [("u", "a"), ("v", "c"), ("w", "a"), ("v", "b"), ("u", "d"), ("w", "d"), ("x", "b"), ("x", "a")]


def test_until_nothing_changes():
    left, events = filtered(CHAIN, users=2, items=2)
    assert left == [("u", "a"), ("w", "a"), ("u", "d"), ("w", "d")]
    assert events.before == (4, 4, 8)
    assert events.rounds == 5  # c, then v, then b, then x, then nothing


def test_once_leaves_some_with_fewer():
    left, events = filtered(CHAIN, users=2, items=2, until_stable=False)
    assert left == [pair for pair in CHAIN if pair != ("v", "c")]
    assert events.rounds == 1


def test_both_against_a_plain_loop():
    rng = np.random.default_rng(5)
    users_E, items_E = rng.zipf(1.6, 900) % 80, rng.zipf(1.4, 900) % 90
    pairs = [(f"u{user}", f"i{item}") for user, item in zip(users_E, items_E, strict=True)]
    pairs = list(dict.fromkeys(pairs))
    left, _ = filtered(pairs, users=4, items=3)
    plain = pairs
    while True:
        users, items = Counter(user for user, _ in plain), Counter(item for _, item in plain)
        kept = [(user, item) for user, item in plain if users[user] >= 4 and items[item] >= 3]
        if kept == plain:
            break
        plain = kept
    assert left == plain
    assert 0 < len(left) < len(pairs)


def test_equal_rows_are_one_event_and_other_times_are_others():
    rows = [Event("u", "a", 1), Event("u", "a", 1), Event("u", "a", 2)]
    events = FilteredEvents(lambda: rows, core=CoreFilter(), period=Period(), name="test")
    assert events.interactions.timestamps.tolist() == [1, 2]
    assert events.twice == 1


def test_a_period_counts_whole_days():
    rows = [Event("u", str(tick), tick * 500) for tick in (0, 2 * DAY - 1, 2 * DAY, 4 * DAY - 1, 4 * DAY)]
    period = Period(since=date(1970, 1, 2), until=date(1970, 1, 2))
    events = FilteredEvents(lambda: rows, core=CoreFilter(), period=period, ticks_per_second=1_000, name="test")
    assert events.interactions.item_ids.tolist() == [str(2 * DAY), str(4 * DAY - 1)]


def test_what_is_wrong_is_told():
    with pytest.raises(DatasetError, match=r"of 8 events none is left.*--min-user-events"):
        filtered(CHAIN, users=9, items=2)
    with pytest.raises(DatasetError, match="at least 1"):
        CoreFilter(min_user_events=0)
    with pytest.raises(DatasetError, match="swap them"):
        Period(since=date(2020, 1, 2), until=date(2020, 1, 1))


def test_the_rule_in_words():
    assert str(CoreFilter(min_user_events=5, min_item_events=3)) == (
        "users with ≥ 5 events, items with ≥ 3, repeated until nothing changes"
    )
    assert "once" in str(CoreFilter(min_user_events=2, until_stable=False))
    assert str(CoreFilter()) == "nothing is filtered"
