from __future__ import annotations

import numpy as np
import pytest
import torch
from dmesr_trainer.config import EvaluationConfig, TrainConfig
from dmesr_trainer.evaluation import evaluate, negatives
from dmesr_trainer.models.build import build
from dmesr_trainer.models.recommender import Recommender, View
from dmesr_trainer.sequences import Sequences
from made_up import make_sequences


class _Fixed(Recommender):
    """Gives each item a score, the same for everyone."""

    def __init__(self, scores_N: list[float], indexed_N: list[bool] | None = None) -> None:
        super().__init__()
        self.method, self.backbone_name, self.max_history = "fixed", "", 4
        self.views, self.sources = (View("bias", 0, 1),), ()
        self.scores_N1 = torch.tensor(scores_N)[:, None]
        self.known_N = torch.tensor(indexed_N or [True] * len(scores_N))

    def item_vectors(self) -> torch.Tensor:
        return self.scores_N1

    def parts(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scores_N1, self.known_N

    def user_vectors(self, vectors_BTV: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(lengths_B), 1)


def test_negatives_are_unseen_distinct_and_the_same_for_every_method(sequences: Sequences):
    drawn_HC = negatives(sequences, split="test", count=30, seed=5)
    for user, drawn_C in zip(sequences.held_out_users_H, drawn_HC, strict=True):
        assert len(set(drawn_C.tolist())) == 30
        assert not set(drawn_C.tolist()) & set(sequences.events(user).tolist())
        assert drawn_C.min() >= 0
        assert drawn_C.max() < sequences.n_items
    np.testing.assert_array_equal(drawn_HC, negatives(sequences, split="test", count=30, seed=5))
    assert (drawn_HC != negatives(sequences, split="test", count=30, seed=6)).any()
    assert (drawn_HC != negatives(sequences, split="valid", count=30, seed=5)).any()


def test_negatives_can_be_all_unseen_items_and_no_more():
    sequences = make_sequences([0, 2, 5, 2], n_items=7)
    assert sorted(negatives(sequences, split="test", count=4, seed=0)[0].tolist()) == [1, 3, 4, 6]
    with pytest.raises(ValueError, match=r"'user-000' has met all but 4 of 7 items.*4 or less"):
        negatives(sequences, split="test", count=5, seed=0)


def test_every_unseen_item_is_drawn_about_as_often():
    sequences = make_sequences(*[[1, 2, 3]] * 600, n_items=6)
    drawn = np.bincount(negatives(sequences, split="test", count=1, seed=0).ravel(), minlength=6)
    assert drawn[[1, 2, 3]].tolist() == [0, 0, 0]
    assert (np.abs(drawn[[0, 4, 5]] - 200) < 60).all()


def test_full_ranking_by_hand():
    # Test target 3 (score 5): above it stand 0 (seen, left out), 4; 5 ties; the target is no rival of itself.
    sequences = make_sequences([0, 1, 2, 3], n_items=6)
    model = _Fixed([9.0, 1.0, 8.0, 5.0, 7.0, 5.0])
    config = EvaluationConfig(negatives=2)
    assert evaluate(model, sequences, split="test", config=config).full_ranks_H.tolist() == [3]
    # Validation target 2 (score 8): its input is 0 and 1; item 3 comes later and is a candidate like any other.
    assert evaluate(model, sequences, split="valid", config=config).full_ranks_H.tolist() == [1]
    seen_too = EvaluationConfig(negatives=2, exclude_history=False)
    assert evaluate(model, sequences, split="test", config=seen_too).full_ranks_H.tolist() == [5]


def test_an_item_bought_again_is_ranked_although_it_is_in_the_history():
    sequences = make_sequences([3, 1, 2, 3], n_items=6)
    model = _Fixed([9.0, 1.0, 8.0, 5.0, 7.0, 1.0])
    assert evaluate(model, sequences, config=EvaluationConfig(negatives=2)).full_ranks_H.tolist() == [3]


def test_an_item_that_cannot_be_recommended_comes_last():
    sequences = make_sequences([0, 1, 2, 3], n_items=6)
    model = _Fixed([9.0, 1.0, 8.0, 99.0, 7.0, 5.0], indexed_N=[True, True, True, False, True, True])
    result = evaluate(model, sequences, config=EvaluationConfig(negatives=2))
    assert result.full_ranks_H.tolist() == [6]
    assert result.sampled_ranks_H.tolist() == [3]
    assert result.figures == {
        "sampled": {"hr@10": 1.0, "ndcg@10": 0.5},
        "full": {"hr@10": 1.0, "ndcg@10": 1 / np.log2(7)},
    }


def test_sampled_ranks_agree_with_the_full_ones_when_every_unseen_item_is_a_negative():
    rng = np.random.default_rng(0)
    histories = [rng.permutation(30)[:5].tolist() for _ in range(20)]
    sequences = make_sequences(*histories, n_items=30)
    model = _Fixed(rng.normal(size=30).tolist())
    result = evaluate(model, sequences, split="test", config=EvaluationConfig(negatives=25))
    np.testing.assert_array_equal(result.sampled_ranks_H, result.full_ranks_H)


def test_popularity_orders_by_training_events_alone():
    # Item 2 is the last event of both users: held out, so never counted.
    sequences = make_sequences([0, 0, 1, 2], [0, 3, 1, 2], n_items=6)
    model = build(TrainConfig.preset("popularity"), sequences=sequences, sources=None)
    np.testing.assert_allclose(model.item_vectors()[:, 0].numpy(), np.log1p([3, 0, 0, 1, 0, 0]), rtol=1e-6)
    # Against items that count nothing either, a target without training events ties, and ties count against it.
    assert evaluate(model, sequences, config=EvaluationConfig(negatives=2)).full_ranks_H.tolist() == [4, 3]
