"""Centres and whitens a source, so that adapters need not spend themselves on the direction all vectors share.

Shapes: N items, D0 an encoder's width, W ≤ D0 kept directions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Directions with less variance than this share of the strongest are numerical noise; scaling them up would amplify it.
_LEAST_VARIANCE = 1e-6


class Whitening(nn.Module):
    """x ↦ (x - μ)·P: the W strongest principal directions, each with variance 1 over the items of the fit."""

    mean_D0: Tensor
    project_D0W: Tensor

    def __init__(self, *, dim: int, width: int) -> None:
        """Builds it.

        Args:
            dim: D0.
            width: W.
        """
        super().__init__()
        self.register_buffer("mean_D0", torch.zeros(dim))
        self.register_buffer("project_D0W", torch.zeros(dim, width))

    @classmethod
    def fit(cls, vectors_ND0: Tensor, *, max_width: int, items_per_dim: float) -> Whitening:
        """Fits it on the vectors that are there.

        Args:
            vectors_ND0: float32; absent items left out.
            max_width: W at most.
            items_per_dim: W is at most N divided by this.
        """
        n_items, dim = vectors_ND0.shape
        exact = vectors_ND0.double()
        mean = exact.mean(0) if n_items else torch.zeros(dim, dtype=torch.float64)
        centred = exact - mean
        variances, directions = torch.linalg.eigh(centred.T @ centred / max(n_items, 1))  # ascending
        real = variances > _LEAST_VARIANCE * variances[-1].clamp(min=1e-30)
        width = max(1, min(max_width, int(real.sum()), int(n_items / items_per_dim)))
        scales = torch.where(real, variances.clamp(min=1e-30).rsqrt(), 0.0)
        made = cls(dim=dim, width=width)
        made.mean_D0.copy_(mean)
        made.project_D0W.copy_((directions * scales)[:, dim - width :])
        return made

    @property
    def width(self) -> int:
        """W."""
        return self.project_D0W.shape[1]

    def forward(self, vectors_ND0: Tensor) -> Tensor:  # noqa: D102
        return (vectors_ND0 - self.mean_D0) @ self.project_D0W
