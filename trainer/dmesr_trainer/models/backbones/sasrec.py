"""SASRec (Kang and McAuley 2018): causal self-attention. Shapes: B sequences, L positions, D width, H heads.

Sequences are padded at the end, where a causal mask already hides the padding: no row has nothing to attend to.
Positions are counted from the end, as with SASRec's padding at the start: the newest event is always position L-1.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from dmesr_trainer.config import BackboneConfig
from dmesr_trainer.models.backbones.base import Backbone, at_place
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
        states_BLD = self._embedded(inputs_BLD, lengths_B)
        for block in self.blocks:
            states_BLD = block(states_BLD)
        normed_BLD: Tensor = self.norm(states_BLD)
        return normed_BLD

    def state_at(self, inputs_BLD: Tensor, lengths_B: Tensor, place_B: Tensor) -> Tensor:  # noqa: D102
        states_BLD = self._embedded(inputs_BLD, lengths_B)
        for block in self.blocks[:-1]:
            states_BLD = block(states_BLD)
        last = cast(_Block, self.blocks[-1])
        normed_BD: Tensor = self.norm(last.at(states_BLD, place_B))
        return normed_BD

    def _embedded(self, inputs_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        steps_L = torch.arange(inputs_BLD.shape[1], device=inputs_BLD.device)
        place_BL = (self.max_history - lengths_B[:, None] + steps_L).clamp(max=self.max_history - 1)
        embedded_BLD: Tensor = self.dropout(inputs_BLD * self.scale + self.positions_LD[place_BL])
        return embedded_BLD


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

    def at(self, states_BLD: Tensor, place_B: Tensor) -> Tensor:
        """What :meth:`forward` gives at one position, float32 [B, D]; in eval mode alone, since nothing is dropped.

        A single query needs no keys and values of all positions: q·(W_k·x) = (W_kᵀ·q)·x, the weights of the softmax
        do not see the keys' bias, and W_v goes out of the weighted sum.
        """
        normed_BLD = self.norm_attention(states_BLD)
        q_HdD, k_HdD, v_HdD = self.qkv.weight.unflatten(0, (3, self.heads, -1))
        q_bias_Hd, _, v_bias_Hd = self.qkv.bias.unflatten(0, (3, self.heads, -1))
        asking_B1D = at_place(normed_BLD, place_B)[:, None]
        q_HBd = asking_B1D.transpose(0, 1) @ q_HdD.transpose(1, 2) + q_bias_Hd[:, None]
        asked_BHD = (q_HBd @ k_HdD).transpose(0, 1) / math.sqrt(q_HdD.shape[1])
        later_BL = torch.arange(states_BLD.shape[1], device=place_B.device) > place_B[:, None]
        scores_BHL = (asked_BHD @ normed_BLD.transpose(1, 2)).masked_fill(later_BL[:, None], -math.inf)
        met_BHD = scores_BHL.softmax(-1) @ normed_BLD
        met_HBd = met_BHD.transpose(0, 1) @ v_HdD.transpose(1, 2) + v_bias_Hd[:, None]
        state_BD = at_place(states_BLD, place_B) + self.out(met_HBd.transpose(0, 1).flatten(1))
        fed_BD: Tensor = self.feed(self.norm_feed(state_BD))
        added_BD: Tensor = state_BD + fed_BD
        return added_BD
