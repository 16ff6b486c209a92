"""BERT4Rec (Sun et al. 2019): bidirectional self-attention over a sequence with hidden events.

Shapes: B sequences, L positions, D width of a view, H heads, d width of a head. Some positions hold the mask's vector
in the place of an item's; the state there guesses the item. To recommend, one such position stands behind the history.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dmesr_trainer.config import BackboneConfig
from dmesr_trainer.models.attention import attend
from dmesr_trainer.models.backbones.base import Backbone
from dmesr_trainer.models.dropout import ByteDropout

_INITIAL_STD = 0.02
_FEED_FORWARD_WIDTH = 4  # of D (§3.3)


class Bert4Rec(Backbone):
    """Blocks of LayerNorm(x + Dropout(g(x))) over self-attention and a GELU network of width 4·D, then a projection."""

    causal = False

    def __init__(self, config: BackboneConfig, *, dim: int) -> None:
        """Builds it.

        Args:
            config: Layers, heads, dropout, L.
            dim: D.

        Raises:
            ValueError: D does not divide among the heads, or there is nothing to hide.
        """
        super().__init__()
        if dim % config.heads:
            raise ValueError(f"dim {dim} does not divide among {config.heads} heads; choose heads that divide it")
        if not 0.0 < config.hidden_share < 1.0:
            raise ValueError(f"backbone.hidden_share is {config.hidden_share}; it must be above 0 and below 1")
        self.max_history = config.max_history
        # L events and the one to guess; counted from the end, so that the newest is always the last position.
        self.positions_LD = nn.Parameter(torch.randn(config.max_history + 1, dim) * _INITIAL_STD)
        self.norm, self.dropout = nn.LayerNorm(dim), ByteDropout(config.dropout)
        self.blocks = nn.ModuleList(
            _Block(dim=dim, heads=config.heads, dropout=config.dropout) for _ in range(config.layers)
        )
        # GELU(h·W + b) of eq. 7; the authors' code normalises it.
        self.project = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim))
        self.scale = math.sqrt(dim)

    def forward(self, inputs_BLD: Tensor, lengths_B: Tensor) -> Tensor:  # noqa: D102
        steps_L = torch.arange(inputs_BLD.shape[1], device=inputs_BLD.device)
        place_BL = (self.max_history + 1 - lengths_B[:, None] + steps_L).clamp(max=self.max_history)
        states_BLD = self.dropout(self.norm(inputs_BLD * self.scale + self.positions_LD[place_BL]))
        for block in self.blocks:
            states_BLD = block(states_BLD, lengths_B)
        projected_BLD: Tensor = self.project(states_BLD)
        return projected_BLD


class _Block(nn.Module):
    def __init__(self, *, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_feed = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        wide = _FEED_FORWARD_WIDTH * dim
        self.feed = nn.Sequential(nn.Linear(dim, wide), nn.GELU(), nn.Linear(wide, dim))
        self.dropout = ByteDropout(dropout)

    def forward(self, states_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        qkv = self.qkv(states_BLD).unflatten(-1, (3, self.heads, -1))
        q_BHLd, k_BHLd, v_BHLd = qkv.permute(2, 0, 3, 1, 4)
        met_BHLd = attend(q_BHLd, k_BHLd, v_BHLd, lengths_B=lengths_B, causal=False)
        states_BLD = self.norm_attention(states_BLD + self.dropout(self.out(met_BHLd.transpose(1, 2).flatten(2))))
        fed_BLD: Tensor = self.norm_feed(states_BLD + self.dropout(self.feed(states_BLD)))
        return fed_BLD
