"""The None baseline: item ids alone on the same backbone, with the same loss, windows and bias; and its control.

Shapes: N items, M items of a step, V = D + 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dmesr_trainer.config import TrainConfig
from dmesr_trainer.models.backbones.base import Backbone
from dmesr_trainer.models.recommender import SequentialRecommender
from dmesr_trainer.models.sourced import SemanticEncoder, SourcedRecommender, available
from dmesr_trainer.sources import Sources


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
        _check_ids(config)
        super().__init__(config=config, views=("id",), sources=(), backbone=backbone, train_counts_N=train_counts_N)


class FlagEncoder(SemanticEncoder):
    """One learned vector for every item that has the source; nothing of the source's content."""

    def __init__(self, *, width: int) -> None:
        """Builds it.

        Args:
            width: V.
        """
        super().__init__()
        self.flag_V = nn.Parameter(torch.zeros(width))

    def prepare(self, vectors: Sequence[Tensor], present: Sequence[Tensor]) -> list[Tensor]:
        """No column of the vectors; taking none keeps them an input of the exported graph."""
        return [vectors_ND0[:, :0] for vectors_ND0 in vectors]

    def forward(self, prepared: Sequence[Tensor], present: Sequence[Tensor]) -> Tensor:  # noqa: D102
        return present[0][:, None] * self.flag_V + prepared[0].sum(1, keepdim=True)


class FlaggedIdRecommender(SourcedRecommender):
    """None that is told which items have a picture: how much of a gain presence alone explains."""

    def __init__(
        self,
        *,
        config: TrainConfig,
        backbone: Backbone,
        train_counts_N: Tensor,
        item_ids: tuple[str, ...],
        sources: Sources,
    ) -> None:
        """Builds it.

        Args:
            config: The run's settings; `flag.source` names the source.
            backbone: f_θ.
            train_counts_N: int64 training events of each item.
            item_ids: The N items of the sequences.
            sources: Vectors of the catalogue; only who has one is looked at.

        Raises:
            ValueError: No item has the source, or `ids.vectors` is off.
        """
        _check_ids(config)
        super().__init__(
            config=config,
            backbone=backbone,
            train_counts_N=train_counts_N,
            item_ids=item_ids,
            sources=sources,
            names=available((config.flag.source,), sources),
            encoder=FlagEncoder(width=config.dim + 1),
        )


def _check_ids(config: TrainConfig) -> None:
    if not config.ids.vectors:
        raise ValueError(f"method {config.method!r} knows items by their ids alone; set ids.vectors to true")
