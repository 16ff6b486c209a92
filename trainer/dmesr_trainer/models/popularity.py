"""The popularity floor: the same order for everyone, by training events. Shapes: N items, B users; V = 1."""

from __future__ import annotations

import torch
from torch import Tensor

from dmesr_trainer.config import TrainConfig
from dmesr_trainer.models.recommender import Recommender, View


class Popularity(Recommender):
    """An item's vector is the logarithm of 1 + its training events; every user's vector is 1."""

    popularity_N1: Tensor

    def __init__(self, *, config: TrainConfig, train_counts_N: Tensor) -> None:
        """Builds it.

        Args:
            config: The run's settings.
            train_counts_N: int64 training events of each item.
        """
        super().__init__()
        self.method, self.backbone_name = config.method, ""
        self.max_history = config.backbone.max_history
        self.views, self.sources = (View("bias", 0, 1),), ()
        self.register_buffer("popularity_N1", torch.log1p(train_counts_N.float())[:, None])

    def item_vectors(self) -> Tensor:  # noqa: D102
        return self.popularity_N1

    def parts(self) -> tuple[Tensor, Tensor]:  # noqa: D102
        return self.popularity_N1, torch.ones_like(self.popularity_N1[:, 0], dtype=torch.bool)

    def user_vectors(self, vectors_BTV: Tensor, lengths_B: Tensor) -> Tensor:  # noqa: D102
        # Summing nothing of the history keeps it an input of the exported graph.
        return torch.ones_like(lengths_B, dtype=torch.float32)[:, None] + vectors_BTV[:, :0].sum(1)
