"""Contrastive alignment of two routes over the items of a batch (eq. 2–3). Shapes: M items, D width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmesr_trainer.config import AlignmentConfig


def align(
    anchor_MD: Tensor,
    other_MD: Tensor,
    both_M: Tensor,
    *,
    anchor_groups_M: Tensor,
    other_groups_M: Tensor,
    config: AlignmentConfig,
) -> Tensor:
    """L_align between two routes: both directions of eq. 2, each the mean over its items.

    Args:
        anchor_MD: Adapted vectors of one route.
        other_MD: Adapted vectors of the other.
        both_M: bool; which items have both. The others take no part, as positives or as negatives.
        anchor_groups_M: int64 content groups: items with the same number have the same description.
        other_groups_M: The same for the other route.
        config: Temperature and denominator.

    Returns:
        A scalar; zero where fewer than two items can be compared.
    """
    anchor_MD, other_MD = anchor_MD[both_M], other_MD[both_M]
    anchor_groups_M, other_groups_M = anchor_groups_M[both_M], other_groups_M[both_M]
    similar_MM = nn.functional.normalize(anchor_MD, dim=1) @ nn.functional.normalize(other_MD, dim=1).T
    similar_MM = similar_MM / config.temperature
    itself_MM = torch.eye(len(similar_MM), dtype=torch.bool, device=similar_MM.device)
    left_out_MM = torch.zeros_like(itself_MM)
    if config.mask_equal_content:
        for groups_M in (anchor_groups_M, other_groups_M):
            left_out_MM |= groups_M[:, None] == groups_M[None, :]
    # I[k≠i] of eq. 2; InfoNCE keeps the positive in.
    left_out_MM = left_out_MM & ~itself_MM if config.positive_in_denominator else left_out_MM | itself_MM
    return _one_side(similar_MM, left_out_MM) + _one_side(similar_MM.T, left_out_MM.T)


def _one_side(similar_MM: Tensor, left_out_MM: Tensor) -> Tensor:
    # A row with nothing to compare with says nothing.
    rows_M = (~left_out_MM).any(1)
    if not rows_M.any():
        return similar_MM.sum() * 0.0
    others_M = similar_MM.masked_fill(left_out_MM, -torch.inf)[rows_M].logsumexp(1)
    return (others_M - similar_MM.diagonal()[rows_M]).mean()
