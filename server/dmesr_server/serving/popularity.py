"""Popularity: what stands in for the model where a history says nothing.

Shapes: N items of the index, C candidates.
"""

from __future__ import annotations

import numpy as np

from dmesr_server.serving.index import ItemIndex
from dmesr_server.topk import best


def popular(index: ItemIndex, *, k: int, candidates_C: np.ndarray | None, excluded: np.ndarray) -> np.ndarray:
    """The rows of the k items with the most interactions in training; equal counts by item id.

    Args:
        index: The items and their counts.
        k: How many at most.
        candidates_C: The rows to choose from, ascending; None for all.
        excluded: Rows never to return.

    Returns:
        Rows of the index, most popular first, int64.
    """
    scores_N = index.counts_N.astype(np.float64)
    scores_N[excluded] = -np.inf
    if candidates_C is None:
        return best(scores_N, k)
    rows: np.ndarray = candidates_C[best(scores_N[candidates_C], k)]
    return rows
