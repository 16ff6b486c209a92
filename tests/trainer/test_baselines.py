"""What holds for every baseline on every backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dmesr_trainer.batching import Windows
from dmesr_trainer.config import BACKBONES, FLOORS, METHODS, METHODS_BY_ID, TrainConfig
from dmesr_trainer.models.build import build
from dmesr_trainer.models.recommender import Recommender
from dmesr_trainer.sequences import Sequences
from dmesr_trainer.sources import Sources
from dmesr_trainer.training import train
from made_up import make_sequences

L = 6
SOURCED = ("none-flag", "xreflect", "cpmm", "qarm")


def _config(method: str, backbone: str = "sasrec", **changes: object) -> TrainConfig:
    settings = {
        "dim": 8,
        "device": "cpu",
        "backbone__max_history": L,
        "optimiser__epochs": 2,
        "optimiser__batch_size": 16,
        "evaluation__negatives": 20,
        "cpmm__pretrain_epochs": 2,
        "qarm__pretrain_epochs": 2,
        "qarm__rq_levels": 2,
        "qarm__vq_codes": 4,
    }
    return TrainConfig.preset(method, backbone=backbone, **{**settings, **changes})


def _build(config: TrainConfig, sequences: Sequences, sources: Sources) -> Recommender:
    torch.manual_seed(0)
    model = build(config, sequences=sequences, sources=sources)
    model.pretrain(seed=0)
    return model


def _with_reflect(sources: Sources) -> Sources:
    made = np.random.default_rng(3).normal(size=(len(sources.item_ids), 12)).astype(np.float32)
    present = sources.present["hybrid"]
    return replace(
        sources,
        vectors={**sources.vectors, "reflect": made * present[:, None]},
        present={**sources.present, "reflect": present.copy()},
    )


def test_methods_are_sorted_by_what_they_need():
    assert set(METHODS_BY_ID) <= set(METHODS)
    assert set(FLOORS) <= set(METHODS_BY_ID)
    assert set(SOURCED) <= set(METHODS) - set(METHODS_BY_ID)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", SOURCED)
def test_every_method_trains_on_every_backbone(
    method: str, backbone: str, tmp_path: Path, sequences: Sequences, sources: Sources
):
    # One epoch of random masks says little of the next, and a warm start of a hundred steps would be all there is.
    brief = {"optimiser__learning_rate": 0.01, "optimiser__epochs": 12, "optimiser__warmup_steps": 0}
    result = train(
        config=_config(method, backbone, backbone__dropout=0.0, **brief),
        sequences=sequences,
        sources=_with_reflect(sources),
        output=tmp_path,
    )
    assert (result.model.method, result.model.backbone_name) == (method, backbone)
    losses = [report.losses for report in result.history]
    recommend = [loss["recommend"] for loss in losses]
    assert np.mean(recommend[-3:]) < np.mean(recommend[:3])
    assert np.isfinite([value for loss in losses for value in loss.values()]).all()
    expected = {"recommend", "contrast", "shift", "cooccurrence"} if method == "cpmm" else {"recommend"}
    assert expected <= losses[0].keys()
    assert bool(result.pretraining) == (method in ("cpmm", "qarm"))


@pytest.mark.parametrize("method", SOURCED)
def test_every_method_learns_with_the_same_settings_as_none(method: str):
    ours, none = TrainConfig.preset(method), TrainConfig.preset("none")
    for part in ("loss", "optimiser", "backbone", "evaluation"):
        assert getattr(ours, part) == getattr(none, part)
    assert (ours.dim, ours.ids.vectors, ours.ids.bias) == (none.dim, none.ids.vectors, none.ids.bias)


@pytest.mark.parametrize("method", SOURCED)
def test_absent_sources_contribute_nothing_to_the_loss(
    method: str, sequences: Sequences, make_sources: Callable[..., Sources]
):
    """What stands in the rows of absent vectors changes neither the loss nor any gradient."""
    clean, dirty = (_with_reflect(make_sources(absent=0.5)) for _ in range(2))
    for name, vectors in dirty.vectors.items():
        vectors[~dirty.present[name]] = 1e6
    config = _config(method, ids__dropout=0.0)
    windows = Windows(sequences, max_history=L, batch_size=16, random=True, negatives=False, seed=0)
    batch = next(windows.epoch())
    losses, gradients = [], []
    for sources in (clean, dirty):
        model = _build(config, sequences, sources)
        torch.manual_seed(1)
        loss = model(batch)
        loss.total.backward()
        losses.append({name: part.item() for name, part in loss.parts.items()})
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert losses[0] == losses[1]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("method", SOURCED)
def test_an_item_without_any_source_is_its_own_part_alone(
    method: str, sequences: Sequences, make_sources: Callable[..., Sources]
):
    sources = _with_reflect(make_sources())
    for present in sources.present.values():
        present[[0, 7]] = False
    model = _build(_config(method), sequences, sources).eval()
    assert not model.semantics(None)[[0, 7]].any()
    indexed = model.indexed_N
    assert not indexed[0]  # never met in training, nothing known of it
    assert indexed[7]
    read = np.any([sources.aligned(sequences.item_ids).present[source.name] for source in model.sources], axis=0)
    np.testing.assert_array_equal(indexed.numpy(), read | (sequences.train_counts_N > 0))


@pytest.mark.parametrize("method", ["xreflect", "cpmm", "qarm"])
def test_semantics_place_items_that_were_never_met(method: str, tmp_path: Path):
    """Items come in two kinds; users stay with one. Held-out items are new, and only their vectors tell their kind."""
    rng = np.random.default_rng(0)
    histories = []
    for user in range(80):
        kind = user % 2
        met = 2 * rng.permutation(30)[:8] + kind
        histories.append([*met.tolist(), int(2 * rng.integers(30, 40) + kind), int(2 * rng.integers(30, 40) + kind)])
    sequences = make_sequences(*histories, n_items=80)
    kinds = np.arange(80) % 2
    vectors = {
        name: (rng.normal(size=(80, 12)) + 3.0 * np.where(kinds[:, None] == 1, 1.0, -1.0)).astype(np.float32)
        for name in ("text", "image", "hybrid", "reflect")
    }
    sources = Sources(
        item_ids=sequences.item_ids, vectors=vectors, present={name: np.ones(80, bool) for name in vectors}
    )
    config = _config(
        method,
        optimiser__epochs=15,
        optimiser__learning_rate=0.01,
        cpmm__pretrain_epochs=10,
        qarm__pretrain_epochs=10,
        evaluation__negatives=60,
    )
    result = train(config=config, sequences=sequences, sources=sources, output=tmp_path)
    with torch.no_grad():
        items = result.model.item_vectors()
        users = result.model.user_vectors(items[torch.tensor([[0, 2, 4], [1, 3, 5]])], torch.tensor([3, 3]))
        scores = users @ items[60:].T  # none of them has a training event
    assert (sequences.train_counts_N[60:] == 0).all()
    even = torch.arange(60, 80) % 2 == 0
    assert scores[0, even].mean() > scores[0, ~even].mean() + 0.5 * scores[0].std()
    assert scores[1, ~even].mean() > scores[1, even].mean() + 0.5 * scores[1].std()


def test_x_reflect_reads_what_the_recipe_has_and_says_what_is_missing(
    sequences: Sequences, make_sources: Callable[..., Sources]
):
    whole = _build(_config("xreflect"), sequences, _with_reflect(make_sources()))
    assert [source.name for source in whole.sources] == ["reflect", "text", "image", "hybrid"]
    assert whole.notes == ()
    without = _build(_config("xreflect"), sequences, make_sources())
    assert [source.name for source in without.sources] == ["text", "image", "hybrid"]
    assert without.notes == (
        "X-REFLECT ran without reflect: the recipe has no such vectors; it read text, image, hybrid",
    )
    with pytest.raises(ValueError, match=r"no vectors of reflect, text, image, hybrid \(it has original\)"):
        _build(_config("xreflect"), sequences, make_sources(names=("original",)))


def test_x_reflect_projects_the_sources_side_by_side(sequences: Sequences, sources: Sources):
    model = _build(_config("xreflect", sources__bias=False, adapter__whiten=False), sequences, sources).eval()
    aligned = sources.aligned(sequences.item_ids)
    names = ("text", "image", "hybrid")
    flags = np.stack([aligned.present[name] for name in names], axis=1)
    beside = np.concatenate([*(aligned.vectors[name] for name in names), flags], axis=1).astype(np.float32)
    first, second = model.encoder.concatenation.adapter.first, model.encoder.concatenation.adapter.second
    expected = second(first(torch.from_numpy(beside))) * torch.from_numpy(flags.any(1))[:, None]
    torch.testing.assert_close(model.semantics(None)[:, :8], expected, atol=1e-5, rtol=1e-4)


def test_the_flag_tells_who_has_a_picture_and_nothing_else(sequences: Sequences, make_sources: Callable[..., Sources]):
    sources = make_sources()
    model = _build(_config("none-flag"), sequences, sources)
    with torch.no_grad():
        model.encoder.flag_V.copy_(torch.arange(1.0, 10.0))
    present = torch.from_numpy(sources.aligned(sequences.item_ids).present["image"])
    assert torch.equal(model.semantics(None), present[:, None] * torch.arange(1.0, 10.0))
    text = _build(_config("none-flag", flag__source="text"), sequences, sources)
    assert [source.name for source in text.sources] == ["text"]
    with pytest.raises(ValueError, match="no vectors of image"):
        _build(_config("none-flag"), sequences, make_sources(names=("text",)))
    with pytest.raises(ValueError, match=r"set ids\.vectors to true"):
        _build(_config("none-flag", ids__vectors=False), sequences, sources)


def test_the_flag_is_learned_where_presence_tells_something(tmp_path: Path):
    """Items with a picture are met by everyone, the others by nobody twice."""
    rng = np.random.default_rng(0)
    histories = [[*rng.permutation(10)[:6].tolist(), int(10 + user)] for user in range(40)]
    sequences = make_sequences(*[rng.permutation(one).tolist() for one in histories], n_items=50)
    sources = Sources(
        item_ids=sequences.item_ids,
        vectors={"image": np.zeros((50, 3), np.float32)},
        present={"image": np.arange(50) < 10},
    )
    config = _config("none-flag", optimiser__epochs=20, optimiser__learning_rate=0.02, ids__bias=False)
    model = train(config=config, sequences=sequences, sources=sources, output=tmp_path).model
    assert model.encoder.flag_V[-1] > 0.1  # its bias: what has a picture sells
