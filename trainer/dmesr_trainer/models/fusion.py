"""Bidirectional cross-attention between the two views of a sequence (eq. 5).

Shapes: B sequences, L positions, D width, H heads.
"""

from __future__ import annotations

from torch import Tensor, nn

from dmesr_trainer.config import FusionConfig
from dmesr_trainer.models.attention import attend


class CrossAttention(nn.Module):
    """One direction: the keys' view refined by queries from the other view."""

    def __init__(self, config: FusionConfig, *, dim: int) -> None:
        """Builds it.

        Args:
            config: Heads and residual.
            dim: D.

        Raises:
            ValueError: D does not divide among the heads.
        """
        super().__init__()
        if dim % config.heads:
            raise ValueError(
                f"dim {dim} does not divide among {config.heads} fusion heads; choose heads that divide it"
            )
        self.heads, self.residual = config.heads, config.residual
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)

    def forward(self, asking_BLD: Tensor, refined_BLD: Tensor, *, lengths_B: Tensor, causal: bool) -> Tensor:
        """Softmax(QKᵀ/√D)V with Q from one view and K, V from the view that is refined.

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
        met_BHLd = attend(q_BHLd, k_BHLd, v_BHLd, lengths_B=lengths_B, causal=causal)
        met_BLD = met_BHLd.transpose(1, 2).flatten(2)
        return refined_BLD + met_BLD if self.residual else met_BLD


class BidirectionalFusion(nn.Module):
    """Both directions, each with matrices of its own."""

    def __init__(self, config: FusionConfig, *, dim: int) -> None:
        """Builds it.

        Args:
            config: Heads and residual.
            dim: D.
        """
        super().__init__()
        self.coarse, self.fine = CrossAttention(config, dim=dim), CrossAttention(config, dim=dim)

    def forward(
        self, coarse_BLD: Tensor, fine_BLD: Tensor, *, lengths_B: Tensor, causal: bool
    ) -> tuple[Tensor, Tensor]:
        """Refined coarse, refined fine."""
        return (
            self.coarse(fine_BLD, coarse_BLD, lengths_B=lengths_B, causal=causal),
            self.fine(coarse_BLD, fine_BLD, lengths_B=lengths_B, causal=causal),
        )
