"""SASRec (Kang and McAuley 2018): causal self-attention. Shapes: B sequences, L positions, D width, H heads.

Sequences are padded at the end, where a causal mask already hides the padding: no row has nothing to attend to.
Positions are counted from the end, as with SASRec's padding at the start: the newest event is always position L-1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dmesr_trainer.config import BackboneConfig
from dmesr_trainer.models.backbones.base import Backbone
from dmesr_trainer.models.dropout import ByteDropout

_INITIAL_POSITION_STD = 0.02


class SasRec(Backbone):
    """Blocks of g(x) = x + Dropout(g(LayerNorm(x))) over self-attention and a position-wise network of width D."""

    causal = True

    def __init__(self, config: BackboneConfig, *, dim: int) -> None:
        """Builds it.

        Args:
            config: Layers, heads, dropout, L.
            dim: D.

        Raises:
            ValueError: D does not divide among the heads.
        """
        super().__init__()
        if dim % config.heads:
            raise ValueError(f"dim {dim} does not divide among {config.heads} heads; choose heads that divide it")
        self.max_history = config.max_history
        self.positions_LD = nn.Parameter(torch.randn(config.max_history, dim) * _INITIAL_POSITION_STD)
        self.dropout = ByteDropout(config.dropout)
        self.blocks = nn.ModuleList(
            _Block(dim=dim, heads=config.heads, dropout=config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.scale = math.sqrt(dim)

    def forward(self, inputs_BLD: Tensor, lengths_B: Tensor) -> Tensor:  # noqa: D102
        steps_L = torch.arange(inputs_BLD.shape[1], device=inputs_BLD.device)
        place_BL = (self.max_history - lengths_B[:, None] + steps_L).clamp(max=self.max_history - 1)
        states_BLD = self.dropout(inputs_BLD * self.scale + self.positions_LD[place_BL])
        for block in self.blocks:
            states_BLD = block(states_BLD)
        normed_BLD: Tensor = self.norm(states_BLD)
        return normed_BLD


class _Block(nn.Module):
    def __init__(self, *, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_feed = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.feed = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), ByteDropout(dropout), nn.Linear(dim, dim))
        self.dropout = ByteDropout(dropout)

    def forward(self, states_BLD: Tensor) -> Tensor:
        qkv = self.qkv(self.norm_attention(states_BLD)).unflatten(-1, (3, self.heads, -1))
        q_BHLd, k_BHLd, v_BHLd = qkv.permute(2, 0, 3, 1, 4)
        # No dropout of the attention weights: it would rule out the fused kernels.
        met_BHLd = nn.functional.scaled_dot_product_attention(q_BHLd, k_BHLd, v_BHLd, is_causal=True)
        states_BLD = states_BLD + self.dropout(self.out(met_BHLd.transpose(1, 2).flatten(2)))
        fed_BLD: Tensor = self.dropout(self.feed(self.norm_feed(states_BLD)))
        return states_BLD + fed_BLD
