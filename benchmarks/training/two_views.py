"""The two-view peer: the trainer's own model, kernels and loop, less adapters and alignment."""

from __future__ import annotations

from dmesr_trainer.config import TrainConfig
from dmesr_trainer.models import backbones
from dmesr_trainer.models.fusion import BidirectionalFusion
from dmesr_trainer.models.recommender import SequentialRecommender
from dmesr_trainer.sequences import Sequences
from torch import Tensor, from_numpy


class TwoViewSasRec(SequentialRecommender):
    """Two views of every item that are learned by id alone; with the cross-attention of eq. 5, or without it."""

    def __init__(self, *, config: TrainConfig, sequences: Sequences) -> None:
        """Builds it.

        Args:
            config: Of the run that it is held against; `fusion.enabled` decides on the cross-attention.
            sequences: The histories.
        """
        super().__init__(
            config=config,
            views=("coarse", "fine"),
            sources=(),
            backbone=backbones.create(config.backbone, dim=config.dim),
            train_counts_N=from_numpy(sequences.train_counts_N),
        )
        longest = config.backbone.max_history
        fused = config.fusion.enabled
        self.fusion = BidirectionalFusion(config.fusion, dim=config.dim, longest=longest) if fused else None

    def fuse(self, views: tuple[Tensor, ...], lengths_B: Tensor) -> tuple[Tensor, ...]:
        if self.fusion is None:
            return views
        fused: tuple[Tensor, ...] = self.fusion(*views, lengths_B=lengths_B, causal=True)
        return fused
