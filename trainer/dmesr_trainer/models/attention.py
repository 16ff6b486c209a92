"""Who sees whom in a sequence padded at the end.

Shapes: B sequences, H heads, L positions, d width of a head, T distances.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def attend(
    q_BHLd: Tensor,
    k_BHLd: Tensor,
    v_BHLd: Tensor,
    *,
    lengths_B: Tensor,
    causal: bool,
    distance_bias_HT: Tensor | None = None,
) -> Tensor:
    """Softmax(QKᵀ/√d + bias)V.

    Args:
        q_BHLd: Queries.
        k_BHLd: Keys.
        v_BHLd: Values.
        lengths_B: int64; how many positions count.
        causal: Whether a position sees only what is not later. That also hides the padding, which comes last.
        distance_bias_HT: What is added for two positions that are t apart; the last column is for all farther ones.

    Returns:
        float [B, H, L, d]; rows of padding hold something finite.
    """
    if distance_bias_HT is not None:
        return _attend_by_distance(q_BHLd, k_BHLd, v_BHLd, distance_bias_HT, lengths_B=lengths_B, causal=causal)
    if causal:
        return nn.functional.scaled_dot_product_attention(q_BHLd, k_BHLd, v_BHLd, is_causal=True)
    steps_L = torch.arange(k_BHLd.shape[2], device=lengths_B.device)
    # A row with nothing to attend to would be NaN: an empty sequence sees its first position.
    seen_B11L = (steps_L < lengths_B.clamp(min=1)[:, None])[:, None, None]
    return nn.functional.scaled_dot_product_attention(q_BHLd, k_BHLd, v_BHLd, attn_mask=seen_B11L)


def _attend_by_distance(
    q_BHLd: Tensor, k_BHLd: Tensor, v_BHLd: Tensor, distance_bias_HT: Tensor, *, lengths_B: Tensor, causal: bool
) -> Tensor:
    steps_L = torch.arange(k_BHLd.shape[2], device=lengths_B.device)
    apart_LL = steps_L[:, None] - steps_L
    bias_HLL = distance_bias_HT[:, apart_LL.abs().clamp(max=distance_bias_HT.shape[1] - 1)]
    if causal:
        mask = bias_HLL.masked_fill(apart_LL < 0, -math.inf)[None]
    else:
        hidden_B11L = (steps_L >= lengths_B.clamp(min=1)[:, None])[:, None, None]
        mask = bias_HLL[None].masked_fill(hidden_B11L, -math.inf)
    return nn.functional.scaled_dot_product_attention(q_BHLd, k_BHLd, v_BHLd, attn_mask=mask)
