"""Who sees whom in a sequence padded at the end. Shapes: B sequences, H heads, L positions, d width of a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def attend(q_BHLd: Tensor, k_BHLd: Tensor, v_BHLd: Tensor, *, lengths_B: Tensor, causal: bool) -> Tensor:
    """Softmax(QKᵀ/√d)V.

    Args:
        q_BHLd: Queries.
        k_BHLd: Keys.
        v_BHLd: Values.
        lengths_B: int64; how many positions count.
        causal: Whether a position sees only what is not later. That also hides the padding, which comes last.

    Returns:
        float [B, H, L, d]; rows of padding hold something finite.
    """
    if causal:
        return nn.functional.scaled_dot_product_attention(q_BHLd, k_BHLd, v_BHLd, is_causal=True)
    steps_L = torch.arange(k_BHLd.shape[2], device=lengths_B.device)
    # A row with nothing to attend to would be NaN: an empty sequence sees its first position.
    seen_B11L = (steps_L < lengths_B.clamp(min=1)[:, None])[:, None, None]
    return nn.functional.scaled_dot_product_attention(q_BHLd, k_BHLd, v_BHLd, attn_mask=seen_B11L)
