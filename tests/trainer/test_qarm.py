from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from dmesr_trainer.config import TrainConfig
from dmesr_trainer.models import quantisation
from dmesr_trainer.models.build import build
from dmesr_trainer.models.qarm import Qarm
from dmesr_trainer.sequences import Sequences
from dmesr_trainer.sources import Sources
from made_up import make_sequences


def _qarm(sequences: Sequences, sources: Sources, **changes: object) -> Qarm:
    torch.manual_seed(0)
    settings = {"dim": 8, "backbone__max_history": 6, "qarm__vq_codes": 3, "qarm__rq_levels": 2, "qarm__rq_clusters": 5}
    model = build(TrainConfig.preset("qarm", **{**settings, **changes}), sequences=sequences, sources=sources)
    assert isinstance(model, Qarm)
    return model


def _described(model: Qarm) -> torch.Tensor:
    return torch.stack(model.present(None)).any(0)


def test_items_are_the_sum_of_their_codes_embeddings(sequences: Sequences, make_sources: Callable[..., Sources]):
    sources = make_sources(absent=0.7)
    model = _qarm(sequences, sources)
    model.pretrain(seed=0)
    with torch.no_grad():
        model.encoder.bias_R1.normal_()
    represented = model.encoder.represent(model.prepared(None), model.present(None))
    entries, books = model.encoder.entries_EQ, model.encoder.books_LCQ
    vq, rq = quantisation.vq_codes(represented, entries, codes=3), quantisation.rq_codes(represented, books)
    table = torch.cat([model.encoder.codes_RD, model.encoder.bias_R1], dim=1)
    found = model.semantics(None)
    described = _described(model)
    assert 0 < described.sum() < len(described)
    for item in range(sequences.n_items):
        expected = torch.zeros(9)
        if described[item]:
            expected = torch.stack([table[code] for code in vq[item]]).mean(0)
            for level in range(2):
                expected = expected + table[len(entries) + 5 * level + rq[item, level]]
        torch.testing.assert_close(found[item], expected)
    # The tower that is exported makes the same of the raw vectors.
    aligned = sources.aligned(sequences.item_ids)
    inputs = [
        torch.from_numpy(values[source.name])
        for source in model.sources
        for values in (aligned.vectors, aligned.present)
    ]
    torch.testing.assert_close(model.item_tower()(*inputs), found)


def test_every_trained_item_is_an_entry_once(sequences: Sequences, make_sources: Callable[..., Sources]):
    sources = make_sources(absent=0.0)
    for name in ("text", "image", "hybrid"):
        sources.vectors[name][5] = sources.vectors[name][4]  # the same description and picture
    model = _qarm(sequences, sources)
    # 59 items have training events, two of them are described alike.
    assert len(model.encoder.entries_EQ) == 58
    model.pretrain(seed=0)
    codes = model.codes_NJ[:, 0]
    assert codes[4] == codes[5]
    assert len(set(codes[1:].tolist())) == 58  # each trained item is nearest to itself
    fewer = _qarm(sequences, sources, qarm__vq_entries=7)
    fewer.pretrain(seed=0)
    assert fewer.encoder.entries_EQ.shape[0] == 7
    assert set(fewer.codes_NJ[:, :3].unique().tolist()) <= set(range(7))


def test_new_items_get_codes_of_the_same_codebooks(sequences: Sequences, make_sources: Callable[..., Sources]):
    sources = make_sources(absent=0.0)
    for name in ("text", "image", "hybrid"):
        sources.vectors[name][60] = sources.vectors[name][17]  # "new-0" is described as item 17 is
    model = _qarm(sequences, sources).eval()
    model.pretrain(seed=0)
    new = [
        torch.from_numpy(values[source.name][60:61])
        for source in model.sources
        for values in (sources.vectors, sources.present)
    ]
    torch.testing.assert_close(model.item_tower()(*new), model.semantics(torch.tensor([17])))


def test_the_alignment_is_a_batch_contrast_of_both_directions(sequences: Sequences, sources: Sources):
    model = _qarm(sequences, sources, qarm__temperature=0.3)
    pairs = model.pairs_P2[:6]
    represented = model.encoder.represent(model.prepared(None), model.present(None)).detach().tolist()
    trigger, target = ([represented[item] for item in side] for side in pairs.T.tolist())
    expected = 0.0
    for ours, theirs in ((trigger, target), (target, trigger)):
        for row in range(6):
            rivals = [
                other
                for other in range(6)
                if other == row
                or not any(model.groups_N[pairs[row, side]] == model.groups_N[pairs[other, side]] for side in (0, 1))
            ]
            if len(rivals) == 1:
                continue
            logits = {
                other: sum(a * b for a, b in zip(ours[row], theirs[other], strict=True)) / 0.3 for other in rivals
            }
            expected += (math.log(sum(map(math.exp, logits.values()))) - logits[row]) / 6
    assert model.align_loss(pairs).item() == pytest.approx(expected / 2, rel=1e-4)


def test_every_item_draws_one_of_its_companions(sequences: Sequences, sources: Sources):
    model = _qarm(sequences, sources)
    companions: dict[int, set[int]] = {}
    for trigger, target in model.pairs_P2.tolist():
        companions.setdefault(trigger, set()).add(target)
    generator, met = torch.Generator().manual_seed(0), {trigger: set() for trigger in companions}
    for _ in range(200):
        pairs = model._drawn_pairs(generator).tolist()
        assert sorted(trigger for trigger, _ in pairs) == sorted(companions)
        for trigger, target in pairs:
            met[trigger].add(target)
    assert met == companions


def test_tuning_brings_companions_together(sequences: Sequences, make_sources: Callable[..., Sources]):
    sources = make_sources(absent=0.0)
    tuned, raw = (_qarm(sequences, sources, qarm__pretrain_epochs=epochs) for epochs in (30, 0))
    before = torch.get_rng_state()
    figures = tuned.pretrain(seed=0)
    assert torch.equal(before, torch.get_rng_state())
    assert figures["align_last"] < 0.8 * figures["align_first"]
    assert "align_last" not in raw.pretrain(seed=0)

    def closeness(model: Qarm) -> float:
        represented = model.encoder.represent(model.prepared(None), model.present(None))
        first, second = model.pairs_P2.unbind(1)
        return float((represented[first] * represented[second]).sum(1).mean())

    assert closeness(tuned) > closeness(raw) + 0.1


def test_pairs_come_from_training_events_alone(sequences: Sequences, sources: Sources):
    other = [
        [*sequences.train(user).tolist(), *[(item + 17) % 60 for item in sequences.events(user)[-2:].tolist()]]
        for user in range(sequences.n_users)
    ]
    models = [_qarm(each, sources) for each in (sequences, make_sequences(*other, n_items=60))]
    for model in models:
        model.pretrain(seed=0)
    assert torch.equal(models[0].pairs_P2, models[1].pairs_P2)
    assert torch.equal(models[0].codes_NJ, models[1].codes_NJ)


def test_a_checkpoint_holds_codebooks_and_codes(sequences: Sequences, sources: Sources):
    trained, fresh = _qarm(sequences, sources), _qarm(sequences, sources)
    trained.pretrain(seed=0)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh.codes_NJ, trained.codes_NJ)
    torch.testing.assert_close(fresh.item_vectors(), trained.item_vectors())


def test_only_code_embeddings_learn_from_recommending(sequences: Sequences, sources: Sources):
    model = _qarm(sequences, sources)
    model.pretrain(seed=0)
    model.semantics(torch.arange(30)).square().sum().backward()
    assert model.encoder.codes_RD.grad is not None
    assert not any(one.requires_grad for one in model.encoder.tuned.parameters())


@pytest.mark.parametrize(
    ("changes", "codes"),
    [({"qarm__vq_codes": 0}, 2), ({"qarm__rq_levels": 0}, 3), ({"qarm__vq_codes": 500}, 60)],
)
def test_one_kind_of_code_will_do(changes: dict[str, object], codes: int, sequences: Sequences, sources: Sources):
    model = _qarm(sequences, sources, **changes)
    figures = model.pretrain(seed=0)
    if changes.get("qarm__vq_codes") == 500:
        codes = int(figures["entries"]) + 2
    assert model.codes_NJ.shape == (60, codes)
    assert torch.isfinite(model.semantics(None)).all()
    assert ("rq_left_over" in figures) == (changes.get("qarm__rq_levels") != 0)


def test_what_cannot_work_is_refused(sequences: Sequences, make_sources: Callable[..., Sources]):
    with pytest.raises(ValueError, match="no item would have a code"):
        _qarm(sequences, make_sources(), qarm__vq_codes=0, qarm__rq_levels=0)
    sources = make_sources()
    for name in ("text", "image", "hybrid"):
        sources.present[name][:60] = False
        sources.present[name][60] = True
    with pytest.raises(ValueError, match="nothing to quantise"):
        _qarm(sequences, sources)


def test_a_missing_source_is_told(sequences: Sequences, make_sources: Callable[..., Sources]):
    assert _qarm(sequences, make_sources()).notes == ()
    notes = _qarm(sequences, make_sources(names=("text",))).notes
    assert notes == ("QARM ran without hybrid, image: the recipe has no such vectors; it read text",)
    assert np.isfinite(list(_qarm(sequences, make_sources(names=("text",))).pretrain(seed=0).values())).all()
