"""SASRec as a textbook writes it in PyTorch: the peer of the trainer's, with every position a target.

Kang and McAuley 2018, in the form of the PyTorch code that people start from: nn.Embedding, nn.MultiheadAttention,
a point-wise feed-forward network, nn.Dropout, nn.LayerNorm, Adam, one negative for each target.

Shapes: B sequences, L positions, D width, V = views · D.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FeedForward(nn.Module):
    """Two Linears of width D, position by position."""

    def __init__(self, *, dim: int, dropout: float) -> None:
        """Builds it."""
        super().__init__()
        self.first, self.second = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dropout_first, self.dropout_second = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, states_BLD: Tensor) -> Tensor:
        hidden_BLD = self.dropout_first(torch.relu(self.first(states_BLD)))
        out_BLD: Tensor = self.dropout_second(self.second(hidden_BLD))
        return out_BLD


class Encoder(nn.Module):
    """The blocks: x + Dropout(g(LayerNorm(x))), attention and feed-forward in turn."""

    def __init__(
        self, *, dim: int, length: int, layers: int, heads: int, dropout: float, attention_dropout: float
    ) -> None:
        """Builds it.

        Args:
            dim: D.
            length: L.
            layers: Blocks.
            heads: Of the attention.
            dropout: Of inputs and of each sub-layer.
            attention_dropout: Of the attention's weights. By the book it is `dropout`; at 0 PyTorch takes its fused
                kernel.
        """
        super().__init__()
        self.scale = dim**0.5
        self.positions = nn.Embedding(length, dim)
        self.dropout = nn.Dropout(dropout)
        self.attention_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.attentions = nn.ModuleList(
            nn.MultiheadAttention(dim, heads, dropout=attention_dropout, batch_first=True) for _ in range(layers)
        )
        self.attention_dropouts = nn.ModuleList(nn.Dropout(dropout) for _ in range(layers))
        self.feed_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.feeds = nn.ModuleList(FeedForward(dim=dim, dropout=dropout) for _ in range(layers))
        self.last_norm = nn.LayerNorm(dim)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, inputs_BLD: Tensor) -> Tensor:
        """The state at each position. Padding comes last, so that the causal mask hides it."""
        length = inputs_BLD.shape[1]
        places_L = torch.arange(length, device=inputs_BLD.device)
        states_BLD = self.dropout(inputs_BLD * self.scale + self.positions(places_L))
        later_LL = torch.ones(length, length, dtype=torch.bool, device=inputs_BLD.device).triu(1)
        parts = zip(
            self.attention_norms, self.attentions, self.attention_dropouts, self.feed_norms, self.feeds, strict=True
        )
        for attention_norm, attention, attention_dropout, feed_norm, feed in parts:
            normed_BLD = attention_norm(states_BLD)
            met_BLD, _ = attention(
                normed_BLD, normed_BLD, normed_BLD, attn_mask=later_LL, is_causal=True, need_weights=False
            )
            states_BLD = states_BLD + attention_dropout(met_BLD)
            states_BLD = states_BLD + feed(feed_norm(states_BLD))
        out_BLD: Tensor = self.last_norm(states_BLD)
        return out_BLD


class TextbookSasRec(nn.Module):
    """Ids alone; with several views, a table for each, and one encoder for all (eq. 6 joins them)."""

    def __init__(
        self,
        *,
        items: int,
        dim: int = 128,
        length: int = 50,
        layers: int = 2,
        heads: int = 2,
        dropout: float = 0.2,
        attention_dropout: float | None = None,
        views: int = 1,
    ) -> None:
        """Builds it.

        Args:
            items: N; row 0 of a table is padding, so items count from 1.
            dim: D of a view.
            length: L.
            layers: Blocks.
            heads: Of the attention.
            dropout: As in `Encoder`.
            attention_dropout: As in `Encoder`; `dropout` by default.
            views: Tables of vectors.
        """
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(items + 1, dim, padding_idx=0) for _ in range(views))
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.02)
        self.encoder = Encoder(
            dim=dim,
            length=length,
            layers=layers,
            heads=heads,
            dropout=dropout,
            attention_dropout=dropout if attention_dropout is None else attention_dropout,
        )

    def states(self, inputs_BL: Tensor) -> Tensor:
        """The state at each position, the views side by side: float32 [B, L, V]."""
        real_BL1 = (inputs_BL > 0)[..., None]
        return torch.cat([self.encoder(table(inputs_BL) * real_BL1) for table in self.tables], dim=-1)

    def vectors(self, items: Tensor) -> Tensor:
        """Items' vectors, the views side by side."""
        return torch.cat([table(items) for table in self.tables], dim=-1)

    def loss(self, inputs_BL: Tensor, targets_BL: Tensor, negatives_BL: Tensor) -> Tensor:
        """Binary cross-entropy of each target beside one negative; padding is 0 in all three."""
        states_BLV = self.states(inputs_BL)
        positive_BL = (states_BLV * self.vectors(targets_BL)).sum(-1)
        negative_BL = (states_BLV * self.vectors(negatives_BL)).sum(-1)
        asked_BL = targets_BL > 0
        judge = nn.functional.binary_cross_entropy_with_logits
        positive_loss = judge(positive_BL[asked_BL], torch.ones_like(positive_BL[asked_BL]))
        return positive_loss + judge(negative_BL[asked_BL], torch.zeros_like(negative_BL[asked_BL]))
