"""Recommendation losses. Shapes: P targets, M candidate items, V vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def softmax_loss(states_PV: Tensor, items_MV: Tensor, targets_P: Tensor) -> Tensor:
    """Cross-entropy of the next item among all candidates, by one matrix product.

    Args:
        states_PV: The user vector before each target.
        items_MV: Every candidate's vector.
        targets_P: int64 rows of `items_MV`.

    Returns:
        The mean over targets.
    """
    return nn.functional.cross_entropy(states_PV @ items_MV.T, targets_P)


def bce_loss(states_PV: Tensor, positives_PV: Tensor, negatives_PV: Tensor) -> Tensor:
    """Eq. 7: each target beside one item that the user did not meet; the mean over targets."""
    positive_P = torch.linalg.vecdot(states_PV, positives_PV)
    negative_P = torch.linalg.vecdot(states_PV, negatives_PV)
    return (nn.functional.softplus(-positive_P) + nn.functional.softplus(negative_P)).mean()
