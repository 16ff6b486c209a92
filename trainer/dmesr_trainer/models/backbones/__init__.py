"""Sequence models f_θ (§3.3.3), one file each."""

from __future__ import annotations

from dmesr_trainer.config import BACKBONES, BackboneConfig
from dmesr_trainer.models.backbones.base import Backbone
from dmesr_trainer.models.backbones.bert4rec import Bert4Rec
from dmesr_trainer.models.backbones.gru4rec import Gru4Rec
from dmesr_trainer.models.backbones.sasrec import SasRec


def create(config: BackboneConfig, *, dim: int) -> Backbone:
    """Makes a backbone.

    Raises:
        ValueError: The name is unknown, or `dim` does not divide among the heads.
    """
    match config.name:
        case "sasrec":
            return SasRec(config, dim=dim)
        case "gru4rec":
            return Gru4Rec(config, dim=dim)
        case "bert4rec":
            return Bert4Rec(config, dim=dim)
    raise ValueError(f"unknown backbone {config.name!r}; choose one of {', '.join(BACKBONES)}")
