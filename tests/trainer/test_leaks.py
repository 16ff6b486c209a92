"""Nothing of what is to be predicted is known before: not to a model, not in a batch, a count or a matrix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dmesr_trainer.batching import Windows
from dmesr_trainer.config import BACKBONES, METHODS, EvaluationConfig, TrainConfig
from dmesr_trainer.evaluation import evaluate, negatives
from dmesr_trainer.models.build import build
from dmesr_trainer.models.recommender import Recommender, SequentialRecommender
from dmesr_trainer.sequences import Sequences
from dmesr_trainer.sources import Sources
from dmesr_trainer.training import train
from made_up import make_sequences

L = 6
N = 60
LEARNERS = tuple(method for method in METHODS if method not in ("popularity", "ease"))


def _config(method: str, backbone: str = "sasrec", **changes: object) -> TrainConfig:
    settings = {
        "dim": 8,
        "device": "cpu",
        "backbone__max_history": L,
        "optimiser__epochs": 1,
        "optimiser__batch_size": 16,
        "evaluation__negatives": 20,
        "cpmm__pretrain_epochs": 1,
        "qarm__pretrain_epochs": 1,
        "qarm__rq_levels": 2,
        "qarm__vq_codes": 4,
    }
    return TrainConfig.preset(method, backbone=backbone, **{**settings, **changes})


@pytest.fixture
def all_sources(sources: Sources) -> Sources:
    """With the source of X-REFLECT."""
    return replace(
        sources,
        vectors={**sources.vectors, "reflect": sources.vectors["hybrid"]},
        present={**sources.present, "reflect": sources.present["hybrid"]},
    )


@torch.enable_grad()
def _model(config: TrainConfig, sequences: Sequences, sources: Sources) -> Recommender:
    torch.manual_seed(0)
    model = build(config, sequences=sequences, sources=sources)
    model.pretrain(seed=0)
    return model.eval()


@torch.no_grad()
def _scores_at_every_position(model: SequentialRecommender, history: list[int]) -> torch.Tensor:
    items_NV = model.item_vectors()
    vectors_1LV = items_NV[torch.tensor(history)][None]
    return model.states(vectors_1LV, torch.tensor([len(history)]))[0] @ items_NV.T


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name != "bert4rec"])
@pytest.mark.parametrize("method", LEARNERS)
def test_later_items_in_another_order_change_no_earlier_score(
    method: str, backbone: str, sequences: Sequences, all_sources: Sources
):
    model = _model(_config(method, backbone), sequences, all_sources)
    history = [5, 17, 29, 3, 41, 11]
    expected_LN = _scores_at_every_position(model, history)
    for known in range(1, L - 1):
        later = history[known:]
        shuffled_LN = _scores_at_every_position(model, history[:known] + later[::-1])
        assert torch.equal(shuffled_LN[:known], expected_LN[:known])
        assert not torch.equal(shuffled_LN[known], expected_LN[known])


@torch.no_grad()
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", LEARNERS)
def test_later_items_in_another_order_change_no_recommendation(
    method: str, backbone: str, sequences: Sequences, all_sources: Sources
):
    """The user tower after k events, whatever stands behind them: for BERT4Rec, the scores at the appended mask."""
    model = _model(_config(method, backbone), sequences, all_sources)
    items_NV = model.item_vectors()
    history = [5, 17, 29, 3, 41, 11]
    for known in range(L):
        rows = torch.tensor([history, history[:known] + history[known:][::-1]])
        scores_BN = model.user_vectors(items_NV[rows], torch.tensor([known, known])) @ items_NV.T
        # Not bit for bit: on some processors a product rounds the rows of one matrix differently.
        torch.testing.assert_close(scores_BN[0], scores_BN[1], rtol=0, atol=1e-5)
        if known:
            rows[1, known - 1] = 23
            scores_BN = model.user_vectors(items_NV[rows], torch.tensor([known, known])) @ items_NV.T
            assert not torch.allclose(scores_BN[0], scores_BN[1], rtol=0, atol=1e-4), "what is known has no effect"


@pytest.mark.parametrize("backbone", ["sasrec", "gru4rec"])
def test_the_leaky_switch_shows_each_position_its_own_label(backbone: str, sequences: Sequences, all_sources: Sources):
    history = [5, 17, 29, 3, 41, 11]
    for leaky in (False, True):
        model = _model(_config("dmesr", backbone, fusion__leaky=leaky), sequences, all_sources)
        one_LN = _scores_at_every_position(model, history)
        other_LN = _scores_at_every_position(model, [*history[:-1], 23])
        assert torch.equal(one_LN[:-1], other_LN[:-1]) != leaky


def test_the_leak_lowers_the_training_loss_and_helps_nobody(tmp_path: Path, all_sources: Sources):
    """Taste is noise here: nothing can be learned but what leaks."""
    rng = np.random.default_rng(5)
    noise = make_sequences(*(rng.integers(1, N, 14).tolist() for _ in range(80)), n_items=N)
    losses, hits = {}, {}
    for leaky in (False, True):
        config = _config("dmesr", fusion__leaky=leaky, optimiser__epochs=25, optimiser__learning_rate=0.01, dim=16)
        result = train(config=config, sequences=noise, sources=all_sources, output=tmp_path / str(leaky))
        losses[leaky] = result.history[-1].losses["recommend"]
        hits[leaky] = result.metrics["test"]["sampled"]["hr@10"]
    assert losses[True] < losses[False] - 0.3
    assert hits[True] < hits[False] + 0.2


def _own_items(n_users: int = 6, length: int = 10) -> Sequences:
    """Every user walks over items of his own, so that an item tells whose event it is."""
    return make_sequences(
        *(list(range(user * length, (user + 1) * length)) for user in range(n_users)), n_items=n_users * length
    )


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("windows", ["random", "last"])
def test_held_out_pairs_are_in_no_batch(backbone: str, windows: str):
    own = _own_items()
    held_out = {int(own.events(user)[-back]) for user in range(own.n_users) for back in (1, 2)}
    drawn = Windows.of(_config("none", backbone, optimiser__windows=windows), own)
    met: set[int] = set()
    for _ in range(10):
        for batch in drawn.epoch():
            met |= {*batch.inputs_BL[batch.shown_BL].tolist(), *batch.targets_BL[batch.asked_BL].tolist()}
    assert not held_out & met
    if windows == "random":
        assert met == set(range(own.n_items)) - held_out


def _with_other_held_out_events(sequences: Sequences) -> Sequences:
    """The same training events, other events to predict."""
    events_E = sequences.events_E.copy()
    ends = sequences.starts_U1[1:][sequences.lengths_U >= 3]
    for back in (1, 2):
        events_E[ends - back] = (events_E[ends - back] + 7 * back) % sequences.n_items
    return replace(sequences, events_E=events_E)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_held_out_events_leave_no_trace_in_what_is_learned(
    method: str, backbone: str, tmp_path: Path, sequences: Sequences, all_sources: Sources
):
    """Counts, co-occurrences, EASE's matrix, codes, every weight: bit by bit the same, whatever is to be predicted."""
    if method in ("popularity", "ease") and backbone != "sasrec":
        pytest.skip("it has no backbone")
    other = _with_other_held_out_events(sequences)
    np.testing.assert_array_equal(sequences.train_counts_N, other.train_counts_N)
    vectors = []
    for name, histories in (("one", sequences), ("other", other)):
        result = train(
            config=_config(method, backbone), sequences=histories, sources=all_sources, output=tmp_path / name
        )
        with torch.no_grad():
            user_BV = result.model.user_vectors(result.model.item_vectors()[:12].reshape(3, 4, -1), torch.full((3,), 4))
        vectors.append((result.model.item_vectors(), user_BV, result.model.state_dict()))
    assert torch.equal(vectors[0][0], vectors[1][0])
    assert torch.equal(vectors[0][1], vectors[1][1])
    for name, value in vectors[0][2].items():
        assert torch.equal(value, vectors[1][2][name]), name


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_every_method_meets_the_same_candidates_after_the_same_input(
    method: str, sequences: Sequences, all_sources: Sources
):
    """Ranks counted by hand: the input is training and validation events, candidates depend on the seed alone."""
    model = _model(_config(method), sequences, all_sources)
    config = EvaluationConfig(negatives=20, seed=3)
    result = evaluate(model, sequences, split="test", config=config)
    drawn_HC = negatives(sequences, split="test", count=20, seed=3)
    items_NV, indexed_N = model.item_vectors(), model.indexed_N
    for row, user in enumerate(sequences.held_out_users_H):
        *history, target = sequences.events(user).tolist()
        recent = history[-model.max_history :]
        user_V = model.user_vectors(items_NV[torch.tensor(recent)][None], torch.tensor([len(recent)]))[0]
        scores_N = (items_NV @ user_V).masked_fill(~indexed_N, -torch.inf)
        if method == "ease":  # scores by its own matrix, which its vectors approximate
            continue
        # A hundred-thousandth is what the order of a sum may change.
        for got, rivals in (
            (result.sampled_ranks_H[row], drawn_HC[row].tolist()),
            (result.full_ranks_H[row], sorted(set(range(N)) - {*history, target})),
        ):
            above = int((scores_N[rivals] > scores_N[target] + 1e-5).sum())
            level = int((scores_N[rivals] >= scores_N[target] - 1e-5).sum())
            assert 1 + above <= got <= 1 + level or not indexed_N[target]


def test_candidates_depend_on_nothing_but_data_split_and_seed(sequences: Sequences):
    drawn = [negatives(sequences, split="test", count=20, seed=3) for _ in range(2)]
    np.testing.assert_array_equal(*drawn)
    torch.manual_seed(99)
    np.random.default_rng(99)
    np.testing.assert_array_equal(drawn[0], negatives(sequences, split="test", count=20, seed=3))


def test_ties_count_against_the_model(sequences: Sequences, all_sources: Sources):
    """A model that gives everything the same score finds nothing."""
    model = _model(_config("none"), sequences, all_sources)
    for parameter in model.parameters():
        parameter.data.zero_()
    model.trained_N.fill_(True)
    result = evaluate(model, sequences, split="test", config=EvaluationConfig(negatives=20))
    assert (result.sampled_ranks_H == 21).all()
    met_H = np.array([len(np.unique(sequences.events(user)[:-1])) for user in sequences.held_out_users_H])
    again_H = np.array([sequences.events(u)[-1] in sequences.events(u)[:-1] for u in sequences.held_out_users_H])
    np.testing.assert_array_equal(result.full_ranks_H, N - met_H + again_H)
    assert result.figures["sampled"] == {"hr@10": 0.0, "ndcg@10": 0.0}
