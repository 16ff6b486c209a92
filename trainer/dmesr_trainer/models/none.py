"""The None baseline: item ids alone on the same backbone, with the same loss, windows and bias."""

from __future__ import annotations

from torch import Tensor

from dmesr_trainer.config import TrainConfig
from dmesr_trainer.models.backbones.base import Backbone
from dmesr_trainer.models.recommender import SequentialRecommender


class IdRecommender(SequentialRecommender):
    """One view, learned by id. Its item tower reads nothing, so it has none."""

    def __init__(self, *, config: TrainConfig, backbone: Backbone, train_counts_N: Tensor) -> None:
        """Builds it.

        Args:
            config: The run's settings; `ids.vectors` must be on.
            backbone: f_θ.
            train_counts_N: int64 training events of each item.

        Raises:
            ValueError: `ids.vectors` is off, so there is nothing to learn.
        """
        if not config.ids.vectors:
            raise ValueError("method 'none' knows items by their ids alone; set ids.vectors to true")
        super().__init__(config=config, views=("id",), sources=(), backbone=backbone, train_counts_N=train_counts_N)
