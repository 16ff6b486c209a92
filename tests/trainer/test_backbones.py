"""Each backbone against its paper, written out."""

from __future__ import annotations

import math

import pytest
import torch
from dmesr_trainer.batching import Windows
from dmesr_trainer.config import BACKBONES, BackboneConfig, TrainConfig
from dmesr_trainer.models.backbones import create
from dmesr_trainer.models.build import build
from dmesr_trainer.models.recommender import SequentialRecommender
from dmesr_trainer.sequences import Sequences
from dmesr_trainer.sources import Sources
from torch import Tensor

B, L, D = 2, 5, 8


def _inputs() -> Tensor:
    return torch.randn(B, L, D, generator=torch.Generator().manual_seed(1))


def _model(method: str, sequences: Sequences, sources: Sources, **changes: object) -> SequentialRecommender:
    config = TrainConfig.preset(method, backbone="bert4rec", dim=D, backbone__max_history=L, **changes)
    torch.manual_seed(0)
    return build(config, sequences=sequences, sources=sources)


@torch.no_grad()
def test_gru4rec_is_its_recurrence():
    backbone = create(BackboneConfig(name="gru4rec", layers=1), dim=D).eval()
    inputs_BLD = _inputs()
    (gru,) = backbone.layers
    (wr, wz, wn), (ur, uz, un) = gru.weight_ih_l0.chunk(3), gru.weight_hh_l0.chunk(3)
    (br, bz, bn), (cr, cz, cn) = gru.bias_ih_l0.chunk(3), gru.bias_hh_l0.chunk(3)
    expected_BLD = torch.zeros(B, L, D)
    for b in range(B):
        h = torch.zeros(D)
        for t in range(L):
            x = inputs_BLD[b, t] * math.sqrt(D)
            reset = torch.sigmoid(wr @ x + br + ur @ h + cr)
            update = torch.sigmoid(wz @ x + bz + uz @ h + cz)
            new = torch.tanh(wn @ x + bn + reset * (un @ h + cn))
            h = (1 - update) * new + update * h
            expected_BLD[b, t] = backbone.feed.weight @ h + backbone.feed.bias
    torch.testing.assert_close(backbone(inputs_BLD, torch.tensor([L, L])), expected_BLD)


@torch.no_grad()
def test_bert4rec_is_its_equations():
    backbone = create(BackboneConfig(name="bert4rec", layers=2, heads=2, max_history=L), dim=D).eval()
    inputs_BLD, lengths_B = _inputs(), torch.tensor([L, 3])
    got_BLD = backbone(inputs_BLD, lengths_B)
    for b, length in enumerate(lengths_B.tolist()):
        # Of L + 1 positions the newest event has the last.
        x_LD = backbone.norm(inputs_BLD[b, :length] * math.sqrt(D) + backbone.positions_LD[L + 1 - length :])
        for block in backbone.blocks:
            q_LD, k_LD, v_LD = block.qkv(x_LD).chunk(3, dim=1)
            heads = []
            for head in (slice(0, D // 2), slice(D // 2, D)):
                weights_LL = torch.softmax(q_LD[:, head] @ k_LD[:, head].T / math.sqrt(D // 2), dim=1)
                heads.append(weights_LL @ v_LD[:, head])
            x_LD = block.norm_attention(x_LD + block.out(torch.cat(heads, dim=1)))
            wide, _, narrow = block.feed
            x_LD = block.norm_feed(x_LD + narrow(torch.nn.functional.gelu(wide(x_LD))))
        linear, _, norm = backbone.project
        expected_LD = norm(torch.nn.functional.gelu(linear(x_LD)))
        torch.testing.assert_close(got_BLD[b, :length], expected_LD, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_state_depends_on_the_order(name: str):
    backbone = create(BackboneConfig(name=name, max_history=L), dim=D).eval()
    inputs_BLD, lengths_B = _inputs(), torch.tensor([L, L])
    swapped_BLD = inputs_BLD[:, [1, 0, *range(2, L)]]
    assert not torch.allclose(backbone(inputs_BLD, lengths_B)[:, -1], backbone(swapped_BLD, lengths_B)[:, -1])


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize(("layers", "heads"), [(1, 2), (3, 1)])
def test_one_position_alone_is_what_it_is_among_all(name: str, layers: int, heads: int):
    backbone = create(BackboneConfig(name=name, max_history=L, layers=layers, heads=heads), dim=D).eval()
    inputs_BLD, lengths_B = torch.randn(4, L, D), torch.tensor([L, 3, 1, 0])
    for place_B in ((lengths_B - 1).clamp(min=0), torch.tensor([2, 0, 0, 0])):
        expected_BLD = backbone(inputs_BLD, lengths_B)
        got_BD = backbone.state_at(inputs_BLD, lengths_B, place_B)
        torch.testing.assert_close(got_BD, expected_BLD[torch.arange(4), place_B], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["dmesr", "dmesr-paper", "none"])
def test_bert4rec_reads_the_state_at_the_appended_mask(method: str, sequences: Sequences, sources: Sources):
    model = _model(method, sequences, sources).eval()
    vectors_BTV, lengths_B = torch.randn(3, 4, model.vector_dim), torch.tensor([4, 2, 0])
    user_BV = model.user_vectors(vectors_BTV, lengths_B)
    hidden_V = torch.nn.functional.pad(model.hidden_V, (0, 1))
    for b, length in enumerate(lengths_B.tolist()):
        row_LV = torch.cat([vectors_BTV[b, :length], hidden_V[None]])
        state_LV = model.states(row_LV[None], torch.tensor([length + 1]))[0]
        torch.testing.assert_close(user_BV[b], state_LV[-1], atol=1e-5, rtol=0)
        assert user_BV[b, -1] == 1  # the user's side of the bias


@pytest.mark.parametrize("method", ["dmesr", "dmesr-paper"])
def test_hidden_events_are_hidden_in_both_views_before_they_meet(
    method: str, sequences: Sequences, sources: Sources, monkeypatch: pytest.MonkeyPatch
):
    model = _model(method, sequences, sources)
    batch = next(
        Windows.of(TrainConfig.preset(method, backbone="bert4rec", backbone__max_history=L), sequences).epoch()
    )
    met: list[tuple[Tensor, ...]] = []
    fuse = model.fuse
    monkeypatch.setattr(model, "fuse", lambda views, lengths_B: met.append(views) or fuse(views, lengths_B))
    model(batch)
    (views,) = met
    assert len(views) == 2
    for place, view_BLD in enumerate(views):
        mask_D = model.hidden_V[place * D : (place + 1) * D]
        assert (view_BLD[batch.hidden_BL] == mask_D).all()
        assert not (view_BLD[batch.shown_BL] == mask_D).all(1).any()


def test_what_is_hidden_reaches_no_state(sequences: Sequences, sources: Sources):
    """The loss asks for a hidden item; its vector as an input would give it away."""
    model = _model("dmesr", sequences, sources, ids__dropout=0.0).eval()
    config = TrainConfig.preset("dmesr", backbone="bert4rec", backbone__max_history=L)
    batch = next(Windows.of(config, sequences).epoch())
    vectors_NV = model.item_vectors()
    states = []
    for stands_there in (0.0, 1e6):
        vectors_BLV = torch.where(batch.hidden_BL[..., None], stands_there, vectors_NV[batch.inputs_BL])
        states_BLV = model.states(model.hide(vectors_BLV, batch.hidden_BL), batch.mask_BL.sum(1))
        states.append(states_BLV[batch.mask_BL])
    assert torch.equal(*states)


def test_a_share_that_hides_nothing_or_all_is_refused():
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match="hidden_share is"):
            create(BackboneConfig(name="bert4rec", hidden_share=share), dim=D)


@pytest.mark.parametrize("method", ["dmesr", "none"])
def test_what_a_backbone_needs_it_gets_with_every_method(method: str):
    """None is a fair twin on each backbone: the same steps, windows, loss, dropout and layers."""
    for backbone in BACKBONES:
        ours, twin = (TrainConfig.preset(one, backbone=backbone) for one in (method, "none"))
        assert (ours.backbone, ours.optimiser, ours.loss) == (twin.backbone, twin.optimiser, twin.loss)
