"""What holds for every method: causality, padding, presence, ids."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from dmesr_trainer.batching import Batch, Windows
from dmesr_trainer.config import TrainConfig
from dmesr_trainer.models.build import build
from dmesr_trainer.models.dmesr import Dmesr
from dmesr_trainer.models.dropout import ByteDropout
from dmesr_trainer.models.recommender import Recommender
from dmesr_trainer.sequences import Sequences
from dmesr_trainer.sources import Sources

L = 6
LEARNERS = ("dmesr", "dmesr-paper", "none")
CAUSAL = [(method, "sasrec") for method in LEARNERS] + [("dmesr", "gru4rec"), ("none", "gru4rec")]
PAIRS = [*CAUSAL, *((method, "bert4rec") for method in LEARNERS)]


def _config(method: str, backbone: str = "sasrec", **changes: object) -> TrainConfig:
    return TrainConfig.preset(method, backbone=backbone, dim=8, backbone__max_history=L, **changes)


def _build(config: TrainConfig, sequences: Sequences, sources: Sources | None) -> Recommender:
    torch.manual_seed(0)
    return build(config, sequences=sequences, sources=sources)


def _batch(sequences: Sequences, config: TrainConfig) -> Batch:
    return next(Windows.of(config.changed(optimiser__batch_size=16, optimiser__windows="random"), sequences).epoch())


@pytest.mark.parametrize(("method", "backbone"), CAUSAL)
def test_no_position_sees_a_later_item(method: str, backbone: str, sequences: Sequences, sources: Sources):
    model = _build(_config(method, backbone), sequences, sources).eval()
    vectors_BLV, lengths_B = torch.randn(3, L, model.vector_dim), torch.full((3,), L)
    before = model.states(vectors_BLV, lengths_B)
    vectors_BLV[:, 4:] = torch.randn(3, 2, model.vector_dim)
    after = model.states(vectors_BLV, lengths_B)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize(("method", "backbone"), PAIRS)
def test_padding_changes_nothing(method: str, backbone: str, sequences: Sequences, sources: Sources):
    model = _build(_config(method, backbone), sequences, sources).eval()
    vectors_BTV = torch.randn(1, 4, model.vector_dim)
    expected = model.user_vectors(vectors_BTV, torch.tensor([4]))
    for width in (5, L, L + 9):
        # Garbage behind the end, even infinities, must not be looked at.
        padded = torch.full((1, width, model.vector_dim), torch.inf)
        padded[:, :4] = vectors_BTV
        torch.testing.assert_close(model.user_vectors(padded, torch.tensor([4])), expected, atol=1e-5, rtol=0)
    beside = torch.cat([torch.nn.functional.pad(vectors_BTV, (0, 0, 0, L)), torch.randn(2, 4 + L, model.vector_dim)])
    torch.testing.assert_close(model.user_vectors(beside, torch.tensor([4, 0, L]))[:1], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("method", "backbone"), PAIRS)
def test_only_the_last_l_events_count_and_none_is_finite(
    method: str, backbone: str, sequences: Sequences, sources: Sources
):
    model = _build(_config(method, backbone), sequences, sources).eval()
    vectors_BTV = torch.randn(1, L + 3, model.vector_dim)
    long = model.user_vectors(vectors_BTV, torch.tensor([L + 3]))
    torch.testing.assert_close(long, model.user_vectors(vectors_BTV[:, 3:], torch.tensor([L])), atol=1e-5, rtol=0)
    for empty in (vectors_BTV, vectors_BTV[:, :0]):
        user = model.user_vectors(empty, torch.tensor([0]))
        assert torch.isfinite(user).all()
        assert user.shape == (1, model.vector_dim)


@pytest.mark.parametrize(("method", "backbone"), CAUSAL)
def test_training_states_are_what_the_user_tower_gives(
    method: str, backbone: str, sequences: Sequences, sources: Sources
):
    model = _build(_config(method, backbone), sequences, sources).eval()
    vectors_BLV = torch.randn(2, 4, model.vector_dim)
    states_BLV = model.states(vectors_BLV, torch.tensor([4, 4]))
    torch.testing.assert_close(states_BLV[:, -1], model.user_vectors(vectors_BLV, torch.tensor([4, 4])))
    assert (states_BLV[..., -1] == 1).all()  # the user's side of the bias


def _present(model: Dmesr, name: str) -> torch.Tensor:
    return model.semantics_inputs("present", None)[[source.name for source in model.sources].index(name)]


@pytest.mark.parametrize("method", ["dmesr", "dmesr-paper"])
@pytest.mark.parametrize("form", ["anchor", "pooled", "concatenated"])
def test_absent_sources_contribute_nothing_to_the_loss(
    method: str, form: str, sequences: Sequences, make_sources: Callable[..., Sources]
):
    """What stands in the rows of absent vectors changes neither the loss nor any gradient."""
    clean = make_sources(absent=0.5)
    dirty = make_sources(absent=0.5)
    for name, vectors in dirty.vectors.items():
        vectors[~dirty.present[name]] = 1e6
    config = _config(method, sources__coarse_form=form, ids__dropout=0.0)
    losses, gradients = [], []
    for sources in (clean, dirty):
        model = _build(config, sequences, sources)
        torch.manual_seed(1)
        loss = model(_batch(sequences, config))
        loss.total.backward()
        losses.append({name: part.item() for name, part in loss.parts.items()})
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert losses[0] == losses[1]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_a_source_that_nobody_has_gets_no_part(sequences: Sequences, make_sources: Callable[..., Sources]):
    sources = make_sources()
    sources.present["image"][:] = False
    model = _build(_config("dmesr"), sequences, sources)
    assert [source.name for source in model.sources] == ["text", "hybrid", "original"]


def test_a_missing_text_is_stood_in_for_and_a_missing_original_is_the_null(
    sequences: Sequences, make_sources: Callable[..., Sources]
):
    sources = make_sources(absent=0.4)
    config = _config("dmesr", sources__coarse_form="anchor", sources__bias=False)
    model = _build(config, sequences, sources).eval()
    with torch.no_grad():
        model.encoder.no_fine_D.copy_(torch.arange(8.0))
    semantic_NV = model.semantics(None)
    aligned = sources.aligned(sequences.item_ids)
    names = [source.name for source in model.sources]
    adapted = {
        name: encoder(model.semantics_inputs("prepared", None)[place], model.semantics_inputs("present", None)[place])
        for place, (name, encoder) in enumerate(zip(names, model.encoder.encoders, strict=True))
    }
    met = set()
    for item in range(sequences.n_items):
        first = next((name for name in ("text", "hybrid", "image") if aligned.present[name][item]), None)
        expected = adapted[first][item] if first else torch.zeros(8)
        torch.testing.assert_close(semantic_NV[item, :8], expected)
        original = adapted["original"][item] if aligned.present["original"][item] else torch.arange(8.0)
        torch.testing.assert_close(semantic_NV[item, 8:16], original)
        met.add(first)
    assert met == {"text", "hybrid", "image", None}


def test_pooled_is_the_sum_of_the_routes_that_are_there(sequences: Sequences, sources: Sources):
    model = _build(_config("dmesr", sources__coarse_form="pooled"), sequences, sources).eval()
    prepared, present = model.semantics_inputs("prepared", None), model.semantics_inputs("present", None)
    routes = model.encoder.coarse_routes(prepared, present)
    torch.testing.assert_close(model.semantics(None)[:, :8], routes[0] + routes[1] + routes[2])


@pytest.mark.parametrize("method", ["dmesr", "none"])
def test_items_without_training_events_have_no_part_of_their_own(method: str, sequences: Sequences, sources: Sources):
    model = _build(_config(method), sequences, sources)
    part_NV, has_part_N = model.parts()
    untrained = np.flatnonzero(sequences.train_counts_N == 0)
    assert 0 in untrained
    assert has_part_N.numpy().tolist() == (sequences.train_counts_N > 0).tolist()
    assert not part_NV[untrained].any()
    model(_batch(sequences, _config(method))).total.backward()
    assert not model.ids.vectors.grad[untrained].any()
    assert not model.ids.bias.grad[untrained].any()


def test_what_can_be_recommended_has_a_source_or_a_part(sequences: Sequences, sources: Sources):
    present = sources.aligned(sequences.item_ids).present
    semantic_N = np.any([present[name] for name in present], axis=0)
    trained_N = sequences.train_counts_N > 0
    indexed = {method: _build(_config(method), sequences, sources).indexed_N.numpy() for method in LEARNERS}
    np.testing.assert_array_equal(indexed["none"], trained_N)
    np.testing.assert_array_equal(indexed["dmesr"], trained_N | semantic_N)
    np.testing.assert_array_equal(indexed["dmesr-paper"], semantic_N)


def test_dropped_ids_leave_the_semantics_alone(sequences: Sequences, sources: Sources):
    config = _config("dmesr", ids__dropout=0.5)
    model = _build(config, sequences, sources).train()
    items_M = torch.from_numpy(np.flatnonzero(sequences.train_counts_N))
    with torch.no_grad():
        model.ids.bias.fill_(3.0)
    vectors_MV, semantic_MV = model._step_vectors(items_M), model.semantics(items_M)
    dropped_M = (vectors_MV == semantic_MV).all(1)
    assert 0 < dropped_M.sum() < len(items_M)
    torch.testing.assert_close((vectors_MV - semantic_MV)[~dropped_M, -1], torch.full((int((~dropped_M).sum()),), 3.0))
    model.eval()
    assert not (model._step_vectors(items_M) == semantic_MV).all(1).any()


def test_the_paper_s_recipe_has_nothing_that_the_paper_does_not_name(sequences: Sequences, sources: Sources):
    model = _build(_config("dmesr-paper"), sequences, sources)
    assert model.ids.vectors is None
    assert model.ids.bias is None
    assert model.encoder.bias is None
    assert all(encoder.whitening is None for encoder in model.encoder.encoders)
    assert not model.fusion.coarse.residual
    assert model.encoder.form == "anchor"
    assert model.alignment.temperature == 2.0
    assert not model.alignment.positive_in_denominator


@pytest.mark.parametrize(
    ("ablation", "views"),
    [("alignment", 3), ("cross-attention", 3), ("original", 2), ("routes", 3)],
)
def test_every_ablation_builds_and_trains(ablation: str, views: int, sequences: Sequences, sources: Sources):
    for method in ("dmesr", "dmesr-paper"):
        config = _config(method).without(ablation)
        model = _build(config, sequences, sources)
        assert len(model.views) == views
        loss = model(_batch(sequences, config))
        assert torch.isfinite(loss.total)
        assert ("align" in loss.parts) == (ablation not in ("alignment", "routes"))
        assert (model.fusion is None) == (ablation in ("cross-attention", "original"))


def test_a_sampled_softmax_is_the_exact_one_when_everything_is_drawn(sequences: Sequences, sources: Sources):
    exact, sampled = (
        _config("dmesr", backbone__dropout=0.0, ids__dropout=0.0, loss__candidates=count) for count in (0, 10_000)
    )
    values = []
    for config in (exact, sampled):
        torch.manual_seed(0)
        model = build(config, sequences=sequences, sources=sources)
        values.append(model(_batch(sequences, config)).parts["recommend"])
    torch.testing.assert_close(values[0], values[1])


def test_sources_that_the_recipe_lacks_are_an_error_that_names_them(
    sequences: Sequences, make_sources: Callable[..., Sources]
):
    with pytest.raises(ValueError, match=r"no vectors of text, hybrid, image \(it has original\)"):
        _build(_config("dmesr"), sequences, make_sources(names=("original",)))
    with pytest.raises(ValueError, match="give sources"):
        _build(_config("dmesr"), sequences, None)


def test_dropout_drops_its_share_and_keeps_the_mean():
    torch.manual_seed(0)
    dropout, ones = ByteDropout(0.25), torch.ones(1000, 100)
    dropped = dropout(ones)
    assert abs((dropped == 0).float().mean().item() - 0.25) < 0.01
    assert abs(dropped.mean().item() - 1.0) < 0.01
    assert torch.equal(dropout.eval()(ones), ones)
    with pytest.raises(ValueError, match="dropout is 1"):
        ByteDropout(1.0)
