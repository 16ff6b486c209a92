from __future__ import annotations

import numpy as np
import pytest
from dmesr_trainer.datasets.base import Interactions
from dmesr_trainer.sequences import Sequences


def _interactions(*rows: tuple[str, str, int]) -> Interactions:
    users, items, times = zip(*rows, strict=True) if rows else ((), (), ())
    return Interactions(
        user_ids=np.array(users, dtype=np.str_),
        item_ids=np.array(items, dtype=np.str_),
        timestamps=np.array(times, dtype=np.int64),
    )


def _names(sequences: Sequences, indexes: np.ndarray) -> list[str]:
    return [sequences.item_ids[index] for index in indexes]


def test_split_is_by_time_and_equal_times_keep_the_order_of_the_file():
    sequences = Sequences.from_interactions(
        _interactions(
            ("u", "late-first-in-file", 9),
            ("v", "x", 1),
            ("u", "b", 2),
            ("u", "a", 2),
            ("u", "c", 1),
            ("u", "late-second-in-file", 9),
        )
    )
    user = sequences.user_ids.index("u")
    assert _names(sequences, sequences.events(user)) == ["c", "b", "a", "late-first-in-file", "late-second-in-file"]
    assert _names(sequences, sequences.train(user)) == ["c", "b", "a"]
    assert _names(sequences, sequences.input(user, "valid")) == ["c", "b", "a"]
    assert _names(sequences, sequences.input(user, "test")) == ["c", "b", "a", "late-first-in-file"]
    assert sequences.held_out_users_H.tolist() == [user]
    assert _names(sequences, sequences.targets_H("valid")) == ["late-first-in-file"]
    assert _names(sequences, sequences.targets_H("test")) == ["late-second-in-file"]


def test_users_with_fewer_than_three_events_only_train():
    sequences = Sequences.from_interactions(_interactions(("u", "a", 1), ("u", "b", 2), ("v", "a", 1)))
    assert sequences.held_out_users_H.tolist() == []
    assert _names(sequences, sequences.train(0)) == ["a", "b"]
    assert dict(zip(sequences.item_ids, sequences.train_counts_N.tolist(), strict=True)) == {"a": 2, "b": 1}


def test_held_out_events_are_not_counted_but_other_users_events_with_those_items_are():
    sequences = Sequences.from_interactions(
        _interactions(("u", "a", 1), ("u", "b", 2), ("u", "c", 3), ("v", "c", 1), ("v", "a", 2), ("v", "a", 3))
    )
    assert dict(zip(sequences.item_ids, sequences.train_counts_N.tolist(), strict=True)) == {"a": 1, "b": 0, "c": 1}


def test_no_interactions_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="no interactions"):
        Sequences.from_interactions(_interactions())
