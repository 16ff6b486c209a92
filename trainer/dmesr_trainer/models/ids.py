"""What is learned for each item by its id: a vector for each view and a bias. New items have none.

Shapes: N items, M items of a step, V = views · D + 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmesr_trainer.config import IdConfig

# Small beside the semantics, so that the ids first learn what those leave out.
_INITIAL_STD = 0.02


class IdPart(nn.Module):
    """The id tables, side by side as one vector of the item: coarse, fine, bias."""

    none: Tensor

    def __init__(self, *, n_items: int, n_views: int, dim: int, config: IdConfig) -> None:
        """Builds it.

        Args:
            n_items: N.
            n_views: Views beside the bias.
            dim: D of a view.
            config: What is learned, and how often an item goes without.
        """
        super().__init__()
        self.width, self.dropout = n_views * dim, config.dropout
        self.vectors = nn.Parameter(torch.randn(n_items, self.width) * _INITIAL_STD) if config.vectors else None
        self.bias = nn.Parameter(torch.zeros(n_items, 1)) if config.bias else None
        self.register_buffer("none", torch.zeros(n_items, 1), persistent=False)

    @property
    def learns(self) -> bool:
        """False where the method knows items by their semantics alone."""
        return self.vectors is not None or self.bias is not None

    def forward(self, items_M: Tensor | None) -> Tensor:
        """The parts of these items, or of all: float32 [M, V]."""
        vectors = self.none.expand(-1, self.width) if self.vectors is None else self.vectors
        bias = self.none if self.bias is None else self.bias
        if items_M is not None:
            vectors, bias = vectors.index_select(0, items_M), bias.index_select(0, items_M)
        return torch.cat([vectors, bias], dim=1)

    def drop(self, part_MV: Tensor) -> Tensor:
        """In training, makes a random share of the items new ones for this step: semantics alone must place them."""
        if not self.training or self.dropout == 0.0:
            return part_MV
        return part_MV * (torch.rand(len(part_MV), 1, device=part_MV.device) >= self.dropout)
