"""The exact best k of many scores.

Shapes: C scores, k of them wanted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_GROUP = 64  # scores of which only the best is looked at first


def best(scores_C: np.ndarray, k: int) -> np.ndarray:
    """The positions of the k highest scores, best first; equal scores by position; -inf is never among them.

    Args:
        scores_C: Float scores without NaN; -inf marks what may not be returned.
        k: How many at most.

    Returns:
        int64 [min(k, scores above -inf)].
    """
    if min(k, len(scores_C)) == 0:
        return np.zeros(0, np.int64)
    hopeful = _hopeful(scores_C, k)
    scores_H = scores_C if hopeful is None else scores_C[hopeful]
    k = min(k, len(scores_H))
    # argpartition alone would choose arbitrarily among scores equal to the k-th: take those by position instead.
    kth = scores_H[np.argpartition(scores_H, len(scores_H) - k)[len(scores_H) - k]]
    above = np.flatnonzero(scores_H > kth)
    equal = np.flatnonzero(scores_H == kth)[: k - len(above)]
    chosen = np.concatenate([above, equal])
    chosen = chosen[np.isfinite(scores_H[chosen])]
    ranked: np.ndarray = chosen[np.lexsort((chosen, -scores_H[chosen]))]
    return ranked if hopeful is None else hopeful[ranked]


def within_reach(scores_C: np.ndarray, k: int, reach: int) -> np.ndarray:
    """The positions of all scores that are not more than `reach` below the k-th highest, ascending.

    Args:
        scores_C: int32; the lowest number that there is marks what may not be returned.
        k: At least 1.
        reach: In the scores' unit.

    Returns:
        int64; the positions of all that may be returned where they are no more than k.
    """
    lowest = int(np.iinfo(scores_C.dtype).min)
    floor = _floor(scores_C, k)
    bound = lowest + 1 if floor is None else max(lowest + 1, int(floor) - reach)
    near = np.flatnonzero(scores_C >= bound)
    if len(near) <= k:
        return near
    scores_H = scores_C[near]
    kth = int(np.partition(scores_H, len(near) - k)[len(near) - k])
    return near[scores_H >= kth - reach]


def _hopeful(scores_C: np.ndarray, k: int) -> np.ndarray | None:
    """The positions that can be among the best k, ascending; None where looking for them does not pay."""
    floor = _floor(scores_C, k)
    return np.flatnonzero(scores_C >= floor) if floor is not None and floor > -np.inf else None


def _floor(scores_C: np.ndarray, k: int) -> Any:
    """A score that at least k reach, near to the k-th best; None where looking for it does not pay.

    It is the k-th highest of what is the highest of each group. Groups are every q-th position: their best is then
    found by comparing whole rows, at the speed of the memory.
    """
    groups = len(scores_C) // _GROUP
    if groups < 4 * k:
        return None
    bests_Q = scores_C[: groups * _GROUP].reshape(_GROUP, groups).max(0)
    return np.partition(bests_Q, groups - k)[groups - k]
