"""From a method's name to its model."""

from __future__ import annotations

from typing import Any

import torch

from dmesr_trainer.config import METHODS, TrainConfig
from dmesr_trainer.models import backbones
from dmesr_trainer.models.cooccurrence import neighbours
from dmesr_trainer.models.cpmm import Cpmm
from dmesr_trainer.models.dmesr import Dmesr
from dmesr_trainer.models.ease import Ease
from dmesr_trainer.models.none import FlaggedIdRecommender, IdRecommender
from dmesr_trainer.models.popularity import Popularity
from dmesr_trainer.models.qarm import Qarm
from dmesr_trainer.models.recommender import Recommender
from dmesr_trainer.models.xreflect import XReflect
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
    match config.method:
        case "popularity":
            return Popularity(config=config, train_counts_N=counts_N)
        case "ease":
            return Ease(config=config, sequences=sequences)
        case method if method not in METHODS:
            raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    backbone = backbones.create(config.backbone, dim=config.dim)
    if config.method == "none":
        return IdRecommender(config=config, backbone=backbone, train_counts_N=counts_N)
    if sources is None:
        raise ValueError(f"method {config.method!r} reads items' vectors; give sources (dmesr_trainer.sources.fetch)")
    parts: dict[str, Any] = {
        "config": config,
        "backbone": backbone,
        "train_counts_N": counts_N,
        "item_ids": sequences.item_ids,
        "sources": sources,
    }
    match config.method:
        case "none-flag":
            return FlaggedIdRecommender(**parts)
        case "xreflect":
            return XReflect(**parts)
        case "cpmm":
            return Cpmm(**parts, neighbours_NN=neighbours(sequences, config.cooccurrence))
        case "qarm":
            return Qarm(**parts, neighbours_NN=neighbours(sequences, config.cooccurrence))
        case _:
            return Dmesr(**parts)
