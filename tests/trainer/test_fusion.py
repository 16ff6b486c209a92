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
    return BidirectionalFusion(FusionConfig(**settings), dim=D).double()


@torch.no_grad()
def _naive(asking: torch.Tensor, refined: torch.Tensor, wq, wk, wv, *, causal: bool) -> torch.Tensor:
    out = torch.zeros_like(refined)
    for b in range(B):
        for i in range(L):
            seen = range(i + 1) if causal else range(L)
            query = wq @ asking[b, i]
            weights = [math.exp(float(query @ (wk @ refined[b, k])) / math.sqrt(D)) for k in seen]
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


@pytest.mark.parametrize("heads", [1, 4])
def test_no_position_sees_a_later_item(heads: int):
    fusion = _fusion(heads=heads)
    coarse, fine = _views()
    before = fusion(coarse, fine, lengths_B=FULL, causal=True)
    for view in (coarse, fine):
        view[:, 3:] += 1.0
    after = fusion(coarse, fine, lengths_B=FULL, causal=True)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[:, :3], other[:, :3])
        assert not torch.equal(one[:, 3:], other[:, 3:])


@pytest.mark.parametrize("causal", [True, False])
def test_padding_is_not_looked_at(causal: bool):
    fusion = _fusion()
    coarse, fine = _views()
    lengths = torch.tensor([3, 5])
    before = fusion(coarse, fine, lengths_B=lengths, causal=causal)
    for view in (coarse, fine):
        view[0, 3:] += 1.0
    after = fusion(coarse, fine, lengths_B=lengths, causal=causal)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[0, :3], other[0, :3])
        assert torch.equal(one[1], other[1])


def test_an_empty_sequence_is_finite():
    coarse, fine = _views()
    for refined in _fusion()(coarse, fine, lengths_B=torch.tensor([0, 5]), causal=False):
        assert torch.isfinite(refined).all()


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="dim 8 does not divide among 3"):
        _fusion(heads=3)
