"""Bidirectional cross-attention between the two views of a sequence (eq. 5).

Shapes: B sequences, L positions, D width, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmesr_trainer.config import FusionConfig
from dmesr_trainer.models.attention import attend


class CrossAttention(nn.Module):
    """One direction: the keys' view refined by queries from the other view."""

    def __init__(self, config: FusionConfig, *, dim: int, longest: int) -> None:
        """Builds it.

        Args:
            config: Heads, residual, gate and bias.
            dim: D.
            longest: L at most.

        Raises:
            ValueError: D does not divide among the heads, or there is a gate without a residual.
        """
        super().__init__()
        if config.gate and not config.residual:
            raise ValueError("fusion.gate needs fusion.residual: with gates at 0 nothing else would reach the backbone")
        if dim % config.heads:
            raise ValueError(
                f"dim {dim} does not divide among {config.heads} fusion heads; choose heads that divide it"
            )
        self.heads, self.residual = config.heads, config.residual
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.gate_D = nn.Parameter(torch.zeros(dim)) if config.gate else None
        self.distance_bias_HT = nn.Parameter(torch.zeros(config.heads, longest)) if config.by_distance else None

    def forward(self, asking_BLD: Tensor, refined_BLD: Tensor, *, lengths_B: Tensor, causal: bool) -> Tensor:
        """Softmax(QKᵀ/√D)V with Q from one view and K, V from the view that is refined; gate and bias if asked for.

        Args:
            asking_BLD: The other view.
            refined_BLD: The view to refine.
            lengths_B: int64; how many positions count.
            causal: Whether a position sees only what is not later; follows the backbone.
        """
        q_BHLd, k_BHLd, v_BHLd = (
            project(view_BLD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, view_BLD in ((self.query, asking_BLD), (self.key, refined_BLD), (self.value, refined_BLD))
        )
        met_BHLd = attend(
            q_BHLd, k_BHLd, v_BHLd, lengths_B=lengths_B, causal=causal, distance_bias_HT=self.distance_bias_HT
        )
        met_BLD = met_BHLd.transpose(1, 2).flatten(2)
        if self.gate_D is not None:
            met_BLD = met_BLD * self.gate_D
        return refined_BLD + met_BLD if self.residual else met_BLD


class BidirectionalFusion(nn.Module):
    """Both directions, each with matrices of its own."""

    def __init__(self, config: FusionConfig, *, dim: int, longest: int) -> None:
        """Builds it.

        Args:
            config: Heads, residual, gate and bias.
            dim: D.
            longest: L at most.
        """
        super().__init__()
        self.coarse, self.fine = (CrossAttention(config, dim=dim, longest=longest) for _ in range(2))

    def forward(
        self, coarse_BLD: Tensor, fine_BLD: Tensor, *, lengths_B: Tensor, causal: bool
    ) -> tuple[Tensor, Tensor]:
        """Refined coarse, refined fine."""
        return (
            self.coarse(fine_BLD, coarse_BLD, lengths_B=lengths_B, causal=causal),
            self.fine(coarse_BLD, fine_BLD, lengths_B=lengths_B, causal=causal),
        )
