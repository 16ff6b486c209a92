from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from dmesr_trainer.config import TrainConfig
from dmesr_trainer.evaluation import score
from dmesr_trainer.models import ease
from dmesr_trainer.models.build import build
from dmesr_trainer.models.cooccurrence import incidence
from dmesr_trainer.models.ease import Ease
from dmesr_trainer.sequences import Sequences
from dmesr_trainer.training import train
from made_up import make_sequences

# Training events 0 1, 1 2, 0 1; items 3 and 4 are only ever held out.
TINY = make_sequences([0, 1, 3, 4], [1, 2, 4, 3], [0, 1, 4, 3], n_items=5)
# With λ = 1, G = [[3, 2, 0], [2, 4, 1], [0, 1, 2]] and P = 1/13 [[7, -4, 2], [-4, 6, -3], [2, -3, 8]].
TINY_WEIGHTS = [
    [0, 4 / 6, -2 / 8, 0, 0],
    [4 / 7, 0, 3 / 8, 0, 0],
    [-2 / 7, 3 / 6, 0, 0, 0],
    [0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0],
]


def _ease(sequences: Sequences, **changes: object) -> Ease:
    model = build(TrainConfig.preset("ease", **changes), sequences=sequences, sources=None)
    assert isinstance(model, Ease)
    return model.eval()


def _history(*items: int) -> np.ndarray:
    return np.array(items, np.int64)


def test_the_weights_are_those_computed_by_hand():
    torch.testing.assert_close(_ease(TINY, ease__l2=1.0).weights_NN, torch.tensor(TINY_WEIGHTS, dtype=torch.float32))


def test_scores_sum_the_weights_of_the_last_different_items():
    model = _ease(TINY, ease__l2=1.0, ease__history=2)
    histories = [_history(0, 2), _history(1, 0, 2), _history(2, 2), _history(3), _history()]
    rows = torch.tensor(TINY_WEIGHTS)
    expected = torch.stack([rows[0] + rows[2], rows[0] + rows[2], rows[2], rows[3], 0 * rows[0]])
    torch.testing.assert_close(score(model, model.item_vectors(), histories), expected.float())


def test_only_so_many_training_events_fill_the_matrix(sequences: Sequences):
    found = _ease(sequences, ease__train_last=4).weights_NN
    short = [[*sequences.train(user)[-4:], *sequences.events(user)[-2:]] for user in range(sequences.n_users)]
    expected = _ease(make_sequences(*short, n_items=sequences.n_items)).weights_NN
    torch.testing.assert_close(found, expected)


def test_blocks_change_nothing(sequences: Sequences, monkeypatch: pytest.MonkeyPatch):
    whole = _ease(sequences)
    monkeypatch.setattr(ease, "_ROWS", 7)
    in_blocks = _ease(sequences)
    assert torch.equal(whole.weights_NN, in_blocks.weights_NN)
    assert whole.error == pytest.approx(in_blocks.error)
    # The same as the textbook: invert, divide by the diagonal.
    met = incidence(sequences).toarray()
    inverse = np.linalg.inv(met.T @ met + 500.0 * np.eye(sequences.n_items))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0.0)
    np.testing.assert_allclose(whole.weights_NN.numpy(), expected, rtol=1e-5, atol=1e-8)


def test_no_held_out_event_is_in_the_matrix(sequences: Sequences):
    other = [
        [*sequences.train(user).tolist(), *[(item + 17) % 60 for item in sequences.events(user)[-2:].tolist()]]
        for user in range(sequences.n_users)
    ]
    same = _ease(make_sequences(*other, n_items=sequences.n_items))
    model = _ease(sequences)
    assert torch.equal(model.weights_NN, same.weights_NN)
    assert torch.equal(model.vectors_NV, same.vectors_NV)
    # A pair that a user has only through a held-out event has no weight of its own.
    assert (model.weights_NN[0] == 0).all()  # item 0 is only ever held out
    assert (model.weights_NN[:, 0] == 0).all()


@pytest.mark.parametrize("dense_side", [4096, 4])
def test_the_factors_are_exact_at_full_rank_and_tell_their_error_below(
    dense_side: int, sequences: Sequences, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ease, "_DENSE_SIDE", dense_side)
    # A sparse solver finds fewer directions than there are.
    rank = sequences.n_users if dense_side == 4096 else 12
    model = _ease(sequences, ease__rank=rank, ease__l2=20.0)
    width = model.views[0].stop
    assert [(view.name, view.start, view.stop) for view in model.views] == [
        ("in", 0, width),
        ("out", width, 2 * width),
        ("key", 2 * width, 2 * width + 1),
    ]
    product = model.vectors_NV[:, :width] @ model.vectors_NV[:, width : 2 * width].T
    away = (product - model.weights_NN).fill_diagonal_(0.0)
    error = float(away.norm() / model.weights_NN.norm())
    assert model.error == pytest.approx(error, abs=1e-5)
    if dense_side == 4096:
        assert error < 1e-5
    else:
        assert 0.05 < error < 0.9
        assert f"rank 12 has a relative error of {model.error:.2g}" in model.notes[0]


def test_both_ways_to_the_directions_agree(sequences: Sequences, monkeypatch: pytest.MonkeyPatch):
    dense = _ease(sequences, ease__rank=5)
    monkeypatch.setattr(ease, "_DENSE_SIDE", 4)
    sparse = _ease(sequences, ease__rank=5)
    for model in (dense, sparse):
        assert model.views[0].stop == 5
    products = [model.vectors_NV[:, :5] @ model.vectors_NV[:, 5:10].T for model in (dense, sparse)]
    torch.testing.assert_close(products[0], products[1], atol=1e-6, rtol=1e-4)


def test_more_users_than_items_are_factorised_too(sequences: Sequences):
    histories = [sequences.events(user).tolist() for user in range(sequences.n_users)]
    model = _ease(make_sequences(*histories, *[[1, 2, 3, 4]] * 40, n_items=60), ease__rank=60)
    assert model.error < 1e-5


def test_the_user_tower_scores_unseen_items_as_the_matrix_does(sequences: Sequences):
    model = _ease(sequences, ease__rank=60, ease__history=5, ease__l2=20.0)
    items = model.item_vectors()
    # A repeated item, more events than count, a single one.
    histories = [_history(3, 9, 3, 20, 9), _history(1, 2, 3, 4, 5, 6, 7, 8), _history(30)]
    lengths = torch.tensor([len(history) for history in histories])
    vectors = torch.full((3, 9, model.vector_dim), torch.inf)
    for row, history in enumerate(histories):
        vectors[row, : len(history)] = items[torch.from_numpy(history)]
    found = model.user_vectors(vectors, lengths) @ items.T
    exact = model.exact_scores(histories)
    for row, history in enumerate(histories):
        unseen = np.setdiff1d(np.arange(60), history)
        torch.testing.assert_close(found[row, unseen], exact[row, unseen], atol=1e-5, rtol=1e-4)
    empty = model.user_vectors(vectors[:, :0], torch.zeros(3, dtype=torch.int64))
    assert torch.equal(empty, torch.zeros(3, model.vector_dim))


def test_a_run_needs_no_epochs_and_keeps_its_note(tmp_path: Path, sequences: Sequences):
    config = TrainConfig.preset("ease", device="cpu", evaluation__negatives=20)
    result = train(config=config, sequences=sequences, sources=None, output=tmp_path)
    assert result.history == ()
    # Users walk a ring, which co-occurrence sees and popularity does not.
    floor = train(
        config=TrainConfig.preset("popularity", device="cpu", evaluation__negatives=20),
        sequences=sequences,
        sources=None,
        output=tmp_path / "floor",
    )
    assert result.metrics["test"]["sampled"]["ndcg@10"] > floor.metrics["test"]["sampled"]["ndcg@10"]
    assert "relative error" in (tmp_path / "result.json").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ease__l2": 0.0}, "ease.l2 is 0.0"),
        ({"ease__rank": 0}, "ease.rank is 0"),
        ({"ease__history": 0}, "ease.history is 0"),
        ({"ease__max_items": 59}, "raise ease.max_items"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, object], message: str, sequences: Sequences):
    with pytest.raises(ValueError, match=message):
        _ease(sequences, **changes)
