"""From a method's name to its model."""

from __future__ import annotations

import torch

from dmesr_trainer.config import METHODS, TrainConfig
from dmesr_trainer.models import backbones
from dmesr_trainer.models.dmesr import Dmesr
from dmesr_trainer.models.none import IdRecommender
from dmesr_trainer.models.popularity import Popularity
from dmesr_trainer.models.recommender import Recommender
from dmesr_trainer.sequences import Sequences
from dmesr_trainer.sources import Sources


def build(config: TrainConfig, *, sequences: Sequences, sources: Sources | None) -> Recommender:
    """Makes an untrained model.

    Args:
        config: The run's settings.
        sequences: The histories; only training events are counted.
        sources: Vectors of the catalogue; methods that know items by their ids alone need none.

    Raises:
        ValueError: The method is unknown, needs sources and got none, or a setting does not fit the data.
    """
    counts_N = torch.from_numpy(sequences.train_counts_N)
    if config.method == "popularity":
        return Popularity(config=config, train_counts_N=counts_N)
    if config.method not in METHODS:
        raise ValueError(f"unknown method {config.method!r}; choose one of {', '.join(METHODS)}")
    backbone = backbones.create(config.backbone, dim=config.dim)
    if config.method == "none":
        return IdRecommender(config=config, backbone=backbone, train_counts_N=counts_N)
    if sources is None:
        raise ValueError(f"method {config.method!r} reads items' vectors; give sources (dmesr_trainer.sources.fetch)")
    return Dmesr(
        config=config, backbone=backbone, train_counts_N=counts_N, item_ids=sequences.item_ids, sources=sources
    )
