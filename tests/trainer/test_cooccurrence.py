from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from dmesr_trainer.config import CooccurrenceConfig
from dmesr_trainer.models.cooccurrence import among, counts, gram, incidence, neighbours, training_events
from dmesr_trainer.sequences import Sequences
from made_up import make_sequences


def _with_other_held_out_events(sequences: Sequences) -> Sequences:
    """The same training events; every held-out event is another item."""
    histories = []
    for user in range(sequences.n_users):
        history = sequences.events(user).tolist()
        if len(history) >= 3:
            history[-2:] = [(item + 17) % sequences.n_items for item in history[-2:]]
        histories.append(history)
    return make_sequences(*histories, n_items=sequences.n_items)


def _naive_counts(sequences: Sequences, window: int) -> Counter[tuple[int, int]]:
    met: Counter[tuple[int, int]] = Counter()
    for user in range(sequences.n_users):
        history = sequences.train(user).tolist()
        if window == 0:
            met.update((a, b) for a in set(history) for b in set(history) if a != b)
            continue
        for place, item in enumerate(history):
            for later in history[place + 1 : place + 1 + window]:
                if later != item:
                    met[item, later] += 1
                    met[later, item] += 1
    return met


@pytest.mark.parametrize("last", [0, 1, 3])
def test_training_events_are_each_user_s_last_ones(last: int, sequences: Sequences):
    users, items = training_events(sequences, last=last)
    expected = [
        (user, item) for user in range(sequences.n_users) for item in sequences.train(user)[-last or None :].tolist()
    ]
    assert list(zip(users.tolist(), items.tolist(), strict=True)) == expected


@pytest.mark.parametrize("window", [0, 1, 2, 5])
def test_counts_are_what_a_loop_counts(window: int):
    # A repeated item, a user with two events, one with three.
    sequences = make_sequences([0, 1, 0, 2, 3, 4, 4], [1, 2], [5, 6, 7], [3, 2, 1, 0, 6, 6], n_items=8)
    found = counts(sequences, window=window).toarray()
    expected = np.zeros((8, 8))
    for (first, second), count in _naive_counts(sequences, window).items():
        expected[first, second] = count
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("window", [0, 3])
def test_nothing_held_out_is_counted(window: int, sequences: Sequences):
    other = _with_other_held_out_events(sequences)
    assert (sequences.targets_H("test") != other.targets_H("test")).all()
    for one, same in (
        (incidence(sequences), incidence(other)),
        (counts(sequences, window=window), counts(other, window=window)),
        *(
            [neighbours(each, CooccurrenceConfig(window=window, neighbours=keep)) for each in (sequences, other)]
            for keep in (0, 4)
        ),
    ):
        np.testing.assert_array_equal(one.toarray(), same.toarray())


def test_the_strongest_companions_by_cosine_are_kept():
    # Item 0 meets 1 twice and 2 once, item 2 meets nobody else, item 1 meets 3 three times.
    sequences = make_sequences([0, 1], [0, 1], [0, 2], [1, 3], [1, 3], [1, 3], n_items=4)
    kept = neighbours(sequences, CooccurrenceConfig(window=1, neighbours=1)).toarray()
    # Degrees 3, 5, 1, 3: cosines 0-1 2/√15 = 0.516, 0-2 1/√3 = 0.577, 1-3 3/√15 = 0.775.
    near, far = 3**-0.5, 3 / 15**0.5
    np.testing.assert_allclose(kept, [[0, 0, near, 0], [0, 0, 0, far], [near, 0, 0, 0], [0, far, 0, 0]])
    every = neighbours(sequences, CooccurrenceConfig(window=1, neighbours=0)).toarray()
    np.testing.assert_allclose(every[0], [0, 2 / 15**0.5, near, 0])


def test_among_is_symmetric_and_holds_the_items_themselves():
    sequences = make_sequences([0, 1], [0, 1], [0, 2], [1, 3], [1, 3], [1, 3], n_items=4)
    kept = neighbours(sequences, CooccurrenceConfig(window=1, neighbours=1))
    found = among(kept, torch.tensor([3, 0, 2]))
    assert found.tolist() == [[True, False, False], [False, True, True], [False, True, True]]


def test_gram_is_the_product_with_the_diagonal_added(sequences: Sequences):
    met = incidence(sequences)
    found = gram(met, diagonal=2.5)
    assert found.flags.f_contiguous
    np.testing.assert_array_equal(found, met.toarray().T @ met.toarray() + 2.5 * np.eye(sequences.n_items))
