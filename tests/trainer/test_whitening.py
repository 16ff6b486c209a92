from __future__ import annotations

import torch
from dmesr_trainer.models.whitening import Whitening


def _correlated(n_items: int, dim: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n_items, dim, generator=generator) @ torch.randn(dim, dim, generator=generator) + 5.0


def test_whitened_vectors_are_centred_with_identity_covariance():
    vectors_ND0 = _correlated(400, 16)
    whitening = Whitening.fit(vectors_ND0, max_width=16, items_per_dim=4)
    white_NW = whitening(vectors_ND0)
    assert white_NW.shape == (400, 16)
    torch.testing.assert_close(white_NW.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(white_NW.T @ white_NW / 400, torch.eye(16), atol=1e-3, rtol=0)


def test_the_strongest_directions_are_kept():
    vectors_ND0 = torch.randn(500, 6, generator=torch.Generator().manual_seed(1)) * torch.tensor([1, 9, 1, 8, 1, 1.0])
    kept_D0 = Whitening.fit(vectors_ND0, max_width=2, items_per_dim=1).project_D0W.abs().sum(1)
    # Directions are scaled by 1/σ, so the two strong inputs are told by their share of unit directions.
    assert sorted(torch.topk(kept_D0 * torch.tensor([1, 9, 1, 8, 1, 1.0]), 2).indices.tolist()) == [1, 3]


def test_a_small_catalogue_keeps_few_directions():
    assert Whitening.fit(_correlated(40, 16), max_width=16, items_per_dim=4).width == 10
    assert Whitening.fit(_correlated(400, 16), max_width=8, items_per_dim=4).width == 8


def test_directions_without_variance_are_left_out():
    vectors_ND0 = torch.cat([_correlated(200, 4), torch.ones(200, 3)], dim=1)
    assert Whitening.fit(vectors_ND0, max_width=7, items_per_dim=1).width == 4


def test_equal_vectors_give_zeros_and_nothing_infinite():
    for rows in (1, 9):
        vectors_ND0 = torch.ones(rows, 5)
        assert torch.equal(Whitening.fit(vectors_ND0, max_width=5, items_per_dim=4)(vectors_ND0), torch.zeros(rows, 1))
