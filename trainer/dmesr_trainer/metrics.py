"""Ranks and the two metrics over them (§4.1.4). Shapes: U users, C candidates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def ranks(positives_U: NDArray[np.floating], others_UC: NDArray[np.floating]) -> NDArray[np.int64]:
    """The place of each positive among the others, from 1. Ties count against the model.

    Args:
        positives_U: The held-out items' scores.
        others_UC: The scores of the other candidates.

    Raises:
        ValueError: A score is NaN.
    """
    if np.isnan(positives_U).any() or np.isnan(others_UC).any():
        raise ValueError("the model gave NaN scores; lower the learning rate or check the embeddings for NaN")
    ranks_U: NDArray[np.int64] = 1 + (others_UC >= positives_U[:, None]).sum(axis=1, dtype=np.int64)
    return ranks_U


def hit_rates(ranks_U: NDArray[np.int64], k: int = 10) -> NDArray[np.float64]:
    """HR@k of each user: 1 where the positive is among the first k."""
    return (ranks_U <= k).astype(np.float64)


def ndcgs(ranks_U: NDArray[np.int64], k: int = 10) -> NDArray[np.float64]:
    """NDCG@k of each user: 1/log2(1 + rank) where the positive is among the first k; the ideal is 1."""
    return np.where(ranks_U <= k, 1.0 / np.log2(1.0 + ranks_U), 0.0)
