"""Equation 5, written out with loops."""

from __future__ import annotations

import math

import pytest
import torch
from dmesr_trainer.config import FusionConfig
from dmesr_trainer.models.fusion import BidirectionalFusion

B, L, D = 2, 5, 8
FULL = torch.full((B,), L)


def _views() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(B, L, D, generator=generator, dtype=torch.float64) for _ in range(2))


def _fusion(**settings: object) -> BidirectionalFusion:
    torch.manual_seed(0)
    return BidirectionalFusion(FusionConfig(**settings), dim=D, longest=L).double()


@torch.no_grad()
def _naive(asking: torch.Tensor, refined: torch.Tensor, wq, wk, wv, *, causal: bool, bias=None) -> torch.Tensor:
    out = torch.zeros_like(refined)
    for b in range(B):
        for i in range(L):
            seen = range(i + 1) if causal else range(L)
            query = wq @ asking[b, i]
            added = [0.0 if bias is None else float(bias[min(abs(i - k), len(bias) - 1)]) for k in seen]
            weights = [
                math.exp(float(query @ (wk @ refined[b, k])) / math.sqrt(D) + more)
                for k, more in zip(seen, added, strict=True)
            ]
            for weight, k in zip(weights, seen, strict=True):
                out[b, i] += weight / sum(weights) * (wv @ refined[b, k])
    return out


@pytest.mark.parametrize("causal", [True, False])
def test_both_directions_are_equation_5(causal: bool):
    fusion = _fusion(residual=False)
    coarse, fine = _views()
    refined_coarse, refined_fine = fusion(coarse, fine, lengths_B=FULL, causal=causal)
    for got, asking, view, part in (
        (refined_coarse, fine, coarse, fusion.coarse),
        (refined_fine, coarse, fine, fusion.fine),
    ):
        weights = (part.query.weight, part.key.weight, part.value.weight)
        torch.testing.assert_close(got, _naive(asking, view, *weights, causal=causal).detach())


def test_the_residual_adds_the_view_that_is_refined():
    coarse, fine = _views()
    with_it, without = (
        _fusion(residual=residual)(coarse, fine, lengths_B=FULL, causal=True) for residual in (True, False)
    )
    torch.testing.assert_close(with_it[0], without[0] + coarse)
    torch.testing.assert_close(with_it[1], without[1] + fine)


def test_a_new_gate_lets_nothing_through_and_then_its_share():
    fusion = _fusion(gate=True)
    coarse, fine = _views()
    for refined, view in zip(fusion(coarse, fine, lengths_B=FULL, causal=True), (coarse, fine), strict=True):
        assert torch.equal(refined, view)
    shares = torch.linspace(-1.0, 1.0, D, dtype=torch.float64)
    with torch.no_grad():
        fusion.coarse.gate_D.copy_(shares)
    got, _ = fusion(coarse, fine, lengths_B=FULL, causal=True)
    part = fusion.coarse
    met = _naive(fine, coarse, part.query.weight, part.key.weight, part.value.weight, causal=True)
    torch.testing.assert_close(got, (coarse + shares * met).detach())


def test_a_new_gate_learns():
    fusion = _fusion(gate=True)
    sum(refined.square().sum() for refined in fusion(*_views(), lengths_B=FULL, causal=True)).backward()
    assert fusion.coarse.gate_D.grad.abs().min() > 0


def test_a_gate_without_a_residual_is_refused():
    with pytest.raises(ValueError, match=r"fusion\.gate needs fusion\.residual"):
        _fusion(gate=True, residual=False)


@pytest.mark.parametrize("causal", [True, False])
def test_a_bias_by_distance(causal: bool):
    fusion = _fusion(by_distance=True)
    coarse, fine = _views()
    plain = _fusion()(coarse, fine, lengths_B=FULL, causal=causal)
    for got, expected in zip(fusion(coarse, fine, lengths_B=FULL, causal=causal), plain, strict=True):
        torch.testing.assert_close(got, expected)  # it is 0 at first
    # Shorter than the sequence: the last one is for all farther events.
    bias = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    fusion.fine.distance_bias_HT = torch.nn.Parameter(bias[None])
    _, got = fusion(coarse, fine, lengths_B=FULL, causal=causal)
    part = fusion.fine
    met = _naive(coarse, fine, part.query.weight, part.key.weight, part.value.weight, causal=causal, bias=bias)
    torch.testing.assert_close(got, (fine + met).detach())


FORMS = ({}, {"by_distance": True}, {"by_distance": True, "gate": True, "heads": 2})


def _with_learned_numbers(fusion: BidirectionalFusion) -> BidirectionalFusion:
    """Gates and biases that are not 0."""
    with torch.no_grad():
        for part in (fusion.coarse, fusion.fine):
            for learned in (part.gate_D, part.distance_bias_HT):
                if learned is not None:
                    learned.copy_(torch.linspace(0.5, 1.5, learned.numel()).reshape(learned.shape))
    return fusion


@pytest.mark.parametrize("form", [{"heads": 4}, *FORMS])
def test_no_position_sees_a_later_item(form: dict[str, object]):
    fusion = _with_learned_numbers(_fusion(**form))
    coarse, fine = _views()
    before = fusion(coarse, fine, lengths_B=FULL, causal=True)
    for view in (coarse, fine):
        view[:, 3:] += 1.0
    after = fusion(coarse, fine, lengths_B=FULL, causal=True)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[:, :3], other[:, :3])
        assert not torch.equal(one[:, 3:], other[:, 3:])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("causal", [True, False])
def test_padding_is_not_looked_at(causal: bool, form: dict[str, object]):
    fusion = _with_learned_numbers(_fusion(**form))
    coarse, fine = _views()
    lengths = torch.tensor([3, 5])
    before = fusion(coarse, fine, lengths_B=lengths, causal=causal)
    for view in (coarse, fine):
        view[0, 3:] += 1.0
    after = fusion(coarse, fine, lengths_B=lengths, causal=causal)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[0, :3], other[0, :3])
        assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_sequence_is_finite(form: dict[str, object]):
    coarse, fine = _views()
    for refined in _fusion(**form)(coarse, fine, lengths_B=torch.tensor([0, 5]), causal=False):
        assert torch.isfinite(refined).all()


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="dim 8 does not divide among 3"):
        _fusion(heads=3)
