from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from dmesr_trainer.config import TrainConfig
from dmesr_trainer.models.build import build
from dmesr_trainer.models.cpmm import Cpmm, contrast, cooccurrence_loss, shift
from dmesr_trainer.sequences import Sequences
from dmesr_trainer.sources import Sources

M, D = 5, 4


def _cpmm(sequences: Sequences, sources: Sources, **changes: object) -> Cpmm:
    torch.manual_seed(0)
    config = TrainConfig.preset("cpmm", dim=8, backbone__max_history=6, **changes)
    model = build(config, sequences=sequences, sources=sources)
    assert isinstance(model, Cpmm)
    return model


def _made(*shape: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def _unit(vector: list[float]) -> list[float]:
    norm = math.sqrt(sum(number**2 for number in vector))
    return [number / norm for number in vector]


def _dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_the_contrast_is_the_mean_of_two_cross_entropies():
    text, image = _made(M, D, seed=1), _made(M, D, seed=2)
    # Item 3 has no picture; items 0 and 1 have the same text, so they are no negatives of each other.
    both = torch.tensor([True, True, True, False, True])
    groups = torch.tensor([7, 7, 1, 2, 3])
    found = contrast(text, image, both, text_groups_M=groups, image_groups_M=torch.arange(M), temperature=0.5)
    units = {name: [_unit(row) for row in rows.tolist()] for name, rows in (("t", text), ("v", image))}
    there = [0, 1, 2, 4]
    expected = 0.0
    for ours, theirs in (("t", "v"), ("v", "t")):
        for item in there:
            rivals = [other for other in there if other == item or groups[other] != groups[item]]
            logits = {other: _dot(units[ours][item], units[theirs][other]) / 0.5 for other in rivals}
            expected += math.log(sum(map(math.exp, logits.values()))) - logits[item]
    assert found.item() == pytest.approx(expected / len(there) / 2, rel=1e-5)


def test_the_shift_is_the_mean_distance_of_unit_vectors():
    modalities, ids = [_made(M, D, seed=1), _made(M, D, seed=2)], _made(M, D, seed=3)
    present = [torch.tensor([True] * 5), torch.tensor([False, True, True, False, True])]
    found = shift(modalities, present, ids)
    means = []
    for modality, there in zip(modalities, present, strict=True):
        away = [
            math.dist(_unit(row), _unit(own))
            for row, own, is_there in zip(modality.tolist(), ids.tolist(), there.tolist(), strict=True)
            if is_there
        ]
        means.append(sum(away) / len(away))
    assert found.item() == pytest.approx(sum(means) / 2, rel=1e-5)
    nobody = torch.zeros(M, dtype=torch.bool)
    assert shift(modalities, [nobody, nobody], ids).item() == 0.0


def test_the_cooccurrence_loss_is_binary_cross_entropy_over_all_pairs():
    ids, met = _made(M, D, seed=3), torch.eye(M, dtype=torch.bool)
    met[0, 2] = met[2, 0] = True
    found = cooccurrence_loss(ids, met, temperature=0.25)
    units = [_unit(row) for row in ids.tolist()]
    expected = 0.0
    for row in range(M):
        for column in range(M):
            chance = 1 / (1 + math.exp(-_dot(units[row], units[column]) / 0.25))
            expected -= math.log(chance if met[row, column] else 1 - chance)
    assert found.item() == pytest.approx(expected / M**2, rel=1e-4)


def test_the_item_is_the_sum_of_id_text_and_picture(sequences: Sequences, sources: Sources):
    model = _cpmm(sequences, sources, sources__bias=False)
    with torch.no_grad():
        model.encoder.refine.weight.normal_(std=0.3)
    modalities, ids = model.encoder.representations(model.prepared(None), model.present(None))
    aligned = sources.aligned(sequences.item_ids)
    for modality, name in zip(modalities, ("text", "image"), strict=True):
        assert (modality != 0).any(1).numpy().tolist() == aligned.present[name].tolist()
    summed = modalities[0] + modalities[1]
    torch.testing.assert_close(ids, summed + summed @ model.encoder.refine.weight.T)
    torch.testing.assert_close(model.semantics(None)[:, :8], ids + summed)
    literal = _cpmm(sequences, sources, cpmm__normalise=True)
    modalities, ids = literal.encoder.representations(literal.prepared(None), literal.present(None))
    parts = [part / part.norm(dim=1, keepdim=True).clamp(min=1e-12) for part in (ids, *modalities)]
    torch.testing.assert_close(literal.semantics(None)[:, :8], sum(parts))


def test_noise_is_for_the_losses_in_training_alone(sequences: Sequences, sources: Sources):
    items = torch.arange(1, 40)
    noisy, quiet = (_cpmm(sequences, sources, cpmm__noise=share) for share in (0.5, 0.0))
    assert noisy.losses(items)["shift"].item() != noisy.losses(items)["shift"].item()
    assert quiet.losses(items)["shift"].item() == quiet.losses(items)["shift"].item()
    assert torch.equal(noisy.train().semantics(None), noisy.train().semantics(None))
    # The share is of the vectors' own spread: 0.5 of it moves a number by about that much.
    prepared, present = noisy.prepared(None)[0], noisy.present(None)[0]
    moved = (noisy.encoder._noisy(prepared, present) - prepared).std()
    assert moved.item() == pytest.approx(0.5 * prepared[present].square().mean().sqrt().item(), rel=0.1)


def test_pretraining_brings_companions_together_and_leaves_the_random_state_alone(
    sequences: Sequences, make_sources: Callable[..., Sources]
):
    models = [_cpmm(sequences, make_sources(absent=0.0), cpmm__pretrain_epochs=40) for _ in range(2)]
    before = torch.get_rng_state()
    figures = [model.pretrain(seed=3) for model in models]
    assert torch.equal(before, torch.get_rng_state())
    assert figures[0] == figures[1]
    for name, least in (("contrast", 0.5), ("cooccurrence", 0.9)):
        assert figures[0][f"{name}_last"] < least * figures[0][f"{name}_first"]
    assert all(parameter.grad is None for parameter in models[0].parameters())
    assert _cpmm(sequences, make_sources(), cpmm__pretrain_epochs=0).pretrain(seed=3) == {}


def test_the_authors_form_trains_first_and_is_fixed_afterwards(sequences: Sequences, sources: Sources):
    model = _cpmm(sequences, sources, cpmm__freeze=True, cpmm__weight=0.0, cpmm__pretrain_epochs=1)
    model.pretrain(seed=0)
    assert not any(one.requires_grad for one in (*model.encoder.adapters.parameters(), model.encoder.refine.weight))
    assert model.ids.vectors is not None
    assert model.ids.vectors.requires_grad
    assert model.auxiliary_losses(torch.arange(1, 20)) == {}


def test_the_three_losses_are_weighted(sequences: Sequences, sources: Sources):
    items = torch.arange(1, 40)
    plain = _cpmm(sequences, sources, cpmm__noise=0.0, cpmm__weight=1.0, cpmm__contrast=1.0)
    weighted = _cpmm(
        sequences,
        sources,
        cpmm__noise=0.0,
        cpmm__weight=0.1,
        cpmm__contrast=3.0,
        cpmm__shift=5.0,
        cpmm__cooccurrence=7.0,
    )
    one, other = plain.auxiliary_losses(items), weighted.auxiliary_losses(items)
    for name, times in (("contrast", 0.3), ("shift", 0.5), ("cooccurrence", 0.7)):
        assert other[name].item() == pytest.approx(times * one[name].item(), rel=1e-5)


def test_one_modality_will_do_and_is_told(sequences: Sequences, make_sources: Callable[..., Sources]):
    model = _cpmm(sequences, make_sources(names=("text", "original")))
    assert [source.name for source in model.sources] == ["text"]
    assert model.notes == ("CPMM ran without image: the recipe has no such vectors; it read text",)
    assert model.losses(torch.arange(1, 40)).keys() == {"shift", "cooccurrence"}
    assert np.isfinite(list(model.pretrain(seed=0).values())).all()
    with pytest.raises(ValueError, match=r"no vectors of text, image \(it has original\)"):
        _cpmm(sequences, make_sources(names=("original",)))
