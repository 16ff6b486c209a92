"""What cells are trained on: filters, items left out of training, the long tail; all by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dmesr_trainer.config import EvaluationConfig, TrainConfig
from dmesr_trainer.experiments import cold, data
from dmesr_trainer.experiments.data import About, Data, only_items, without_items
from dmesr_trainer.experiments.longtail import folds, tail_items
from dmesr_trainer.models.build import build
from dmesr_trainer.sequences import Sequences
from made_up import make_sequences


def _data(sequences: Sequences) -> Data:
    about = About("made-up", (), False, sequences.n_users, sequences.n_items, len(sequences.events_E), 1)
    return Data(about=about, sequences=sequences)


def test_keeping_some_items_drops_the_events_and_the_candidates():
    sequences = make_sequences([0, 1, 2, 3], [1, 1], [4, 3, 2, 0], n_items=5)
    kept = only_items(sequences, {"item-000", "item-002", "item-003", "nobody-has-it"})
    assert kept.item_ids == ("item-000", "item-002", "item-003")
    assert kept.user_ids == ("user-000", "user-002")
    assert [kept.events(user).tolist() for user in range(2)] == [[0, 1, 2], [2, 1, 0]]
    with pytest.raises(ValueError, match=r"of the 5 items 1 are kept, and no user has 3 events"):
        only_items(sequences, {"item-000"})


def test_items_left_out_are_nowhere_but_in_the_events_to_rank():
    # Item 3 is new: the test item of user 0, in the middle for user 1, nowhere for user 2.
    sequences = make_sequences([0, 1, 2, 3], [0, 3, 1, 2], [0, 1, 2], [3, 3, 3], n_items=5)
    left = without_items(_data(sequences), np.arange(5) == 3)
    assert left.sequences.item_ids == sequences.item_ids
    assert left.sequences.user_ids == sequences.user_ids
    assert [left.sequences.events(user).tolist() for user in range(4)] == [[0, 1, 2], [0, 1, 2], [0, 1, 2], []]
    assert 3 not in left.sequences.events_E
    assert left.sequences.train_counts_N[3] == 0
    # User 3 has no other event to be known by.
    assert left.cold is not None
    assert left.cold.users_C.tolist() == [0]
    assert left.cold.targets_C.tolist() == [3]
    with pytest.raises(ValueError, match="none of the 1 items left out is anybody's test item"):
        without_items(_data(sequences), np.arange(5) == 4)


def test_over_all_folds_every_test_event_is_ranked_once(sequences: Sequences):
    parts = folds(_data(sequences), 4)
    measured = np.concatenate([part.cold.users_C for part in parts if part.cold])
    assert sorted(measured.tolist()) == sequences.held_out_users_H.tolist()
    for part in parts:
        assert part.cold is not None
        assert not set(part.cold.targets_C.tolist()) & set(part.sequences.events_E.tolist())
    with pytest.raises(ValueError, match="1 folds would leave nothing"):
        folds(_data(sequences), 1)


def test_new_items_meet_trained_items_that_the_user_has_not_met(sequences: Sequences):
    part = folds(_data(sequences), 4)[0]
    assert part.cold is not None
    config = EvaluationConfig(negatives=10)
    drawn_CK = cold.rivals(part, config)
    np.testing.assert_array_equal(drawn_CK, cold.rivals(part, config))
    for user, drawn_K in zip(part.cold.users_C, drawn_CK, strict=True):
        assert len(set(drawn_K.tolist())) == 10
        assert not set(drawn_K.tolist()) & set(part.sequences.events(int(user)).tolist())
        assert (part.sequences.train_counts_N[drawn_K] > 0).all()
    with pytest.raises(ValueError, match=r"so 59 candidates cannot be drawn"):
        cold.rivals(part, EvaluationConfig(negatives=59))


def test_ranks_of_new_items_by_hand():
    # The user met 0 and 1; item 4 is new; 2, 3 and 5 were trained on by another user, 6 by nobody.
    sequences = make_sequences([0, 1, 4], [2, 3, 5, 2, 3, 5, 0, 1], n_items=7)
    part = without_items(_data(sequences), np.arange(7) == 4)
    scores_CN = np.array([[9.0, 9.0, 5.0, 3.0, 4.0, 4.0, 9.0]], np.float32)
    found = cold.ranks_of_scores(scores_CN, part, np.array([[3, 5]]))
    # Of the rivals 5 ties, which counts against it; of all trained ones 2 is above, too.
    assert found["sampled"].tolist() == [2]
    assert found["full"].tolist() == [3]


def test_a_method_that_knows_ids_alone_puts_new_items_last(sequences: Sequences):
    part = folds(_data(sequences), 4)[0]
    config = TrainConfig.preset("none", dim=8, evaluation__negatives=10)
    model = build(config, sequences=part.sequences, sources=None).eval()
    assert (cold.evaluate(model, part, config.evaluation)["sampled"] == 11).all()


def test_long_tail_by_hand():
    # Training events: item 0 three, item 1 two, items 2 to 9 one or none.
    sequences = make_sequences([0, 1, 0, 1, 0, 2, 3], [4, 5, 6, 7, 8, 9], n_items=10)
    is_tail_N = tail_items(sequences)
    assert is_tail_N.sum() == 8
    assert np.flatnonzero(~is_tail_N).tolist() == [0, 1]


def test_data_comes_back_as_it_was(tmp_path: Path, sequences: Sequences):
    part = folds(_data(sequences), 4)[1]
    kept = data.load(data.save(part, tmp_path))
    assert kept.digest == part.digest
    assert kept.about == part.about
    assert kept.sequences.item_ids == part.sequences.item_ids
    assert kept.cold is not None
    assert part.cold is not None
    np.testing.assert_array_equal(kept.cold.targets_C, part.cold.targets_C)
    assert len({one.digest for one in (_data(sequences), *folds(_data(sequences), 4))}) == 5


def test_fewest_unseen_items():
    assert data.fewest_unseen(make_sequences([0, 1, 2, 1], [0, 1, 2, 3], [0], n_items=6)) == 2
