"""Leave-last-out figures against values computed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from dmesr.cli.evaluation import Case, cases_of, popularity_ranks, read_events, scores_of


def test_scores_of_known_ranks():
    scores = scores_of([1, 3, None, 11], k=10)
    gains = [1.0, 1 / math.log2(4), 0.0, 0.0]
    mean = sum(gains) / 4
    assert scores.hit_rate == pytest.approx(0.5)
    assert scores.ndcg == pytest.approx(0.375)
    # Sample standard deviation of (1, 1, 0, 0) is sqrt(1/3); over the root of 4 users.
    assert scores.hit_rate_se == pytest.approx(math.sqrt(1 / 3) / 2)
    assert scores.ndcg_se == pytest.approx(math.sqrt(sum((gain - mean) ** 2 for gain in gains) / 3 / 4))


def test_one_user_has_no_standard_error():
    assert math.isnan(scores_of([1], k=10).hit_rate_se)


def test_cases_hide_the_last_item_and_skip_short_histories():
    events = {"u": ["a", "b", "c"], "v": ["a"], "w": ["c", "a"]}
    assert cases_of(events, max_users=None, seed=0) == [Case(("a", "b"), "c"), Case(("c",), "a")]
    assert len(cases_of(events, max_users=1, seed=0)) == 1
    assert cases_of(events, max_users=1, seed=3) == cases_of(events, max_users=1, seed=3)


def test_popularity_counts_only_what_is_not_hidden_and_ties_count_against():
    events = {
        "u": ["a", "b", "d"],  # hidden: d
        "v": ["a", "c", "b"],  # hidden: b
        "w": ["a", "c", "x"],  # hidden: x, which the catalog lacks
        "y": ["b"],  # one event: counted, not evaluated
    }
    # Counts: a 3, b 2 (u and y), c 2, d 0. The catalog has six items: a, b, c, d, e, f.
    cases = cases_of(events, max_users=None, seed=0)
    ranks = popularity_ranks(cases, hidden_from=events, known={"a", "b", "c", "d"}, catalog_items=6)
    # u: a and b are seen; c beats d, e and f tie with it: rank 4 of c, d, e, f.
    # v: a and c are seen; b alone has its count: rank 1.
    assert ranks == [4, 1, None]


def test_popularity_keeps_a_hidden_item_that_was_seen_before():
    events = {"u": ["a", "b", "a"], "v": ["b", "c"]}
    # Counts: a 1, b 2. u's hidden a stands in its history but competes; b, which is seen, does not.
    ranks = popularity_ranks(
        cases_of(events, max_users=None, seed=0), hidden_from=events, known={"a", "b", "c"}, catalog_items=3
    )
    # v: b is seen; a beats c.
    assert ranks == [1, 2]


def test_events_are_ordered_by_time_and_ties_by_the_file(tmp_path: Path):
    file = tmp_path / "events.csv"
    file.write_text("user,item,when\nu,a,10\nu,b,9\nv,c,5\nu,c,10\nv,d,5\n")
    timed = read_events(file, user="user", item="item", time="when")
    assert timed.by_user == {"u": ["b", "a", "c"], "v": ["c", "d"]}
    assert read_events(file, user="user", item="item", time=None).by_user == {"u": ["a", "b", "c"], "v": ["c", "d"]}


def test_a_gap_in_the_events_costs_its_row(tmp_path: Path):
    file = tmp_path / "events.jsonl"
    file.write_text('{"user_id": "u", "item_id": "a"}\n{"user_id": "u", "item_id": null}\n')
    events = read_events(file, user="user_id", item="item_id", time=None)
    assert events.by_user == {"u": ["a"]}
    (row,) = events.unusable
    assert "row 2" in row.message
    assert "item_id" in row.message
