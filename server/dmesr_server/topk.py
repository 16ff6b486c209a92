"""The exact best k of many scores: of one question, or of many at once.

Many at once are worth it beyond their arithmetic. NumPy lets go of the interpreter's lock for each large step, and
where another thread wants it too, each step waits for its turn to have it back: steps for all questions wait once.

Shapes: B questions, C scores of each, R scores of all questions together, k of them wanted.
"""

from __future__ import annotations

import numpy as np

_GROUP = 64  # scores of which only the best is looked at first
_TIES = 16  # times k: from so many scores on that reach the floor, sorting all of them does not pay


def best(scores_C: np.ndarray, k: int) -> np.ndarray:
    """The positions of the k highest scores, best first; equal scores by position; -inf is never among them.

    Args:
        scores_C: Float scores without NaN; -inf marks what may not be returned.
        k: How many at most.

    Returns:
        int64 [min(k, scores above -inf)].
    """
    return best_of_each(scores_C[None], k)[0]


def best_of_each(scores_BC: np.ndarray, k: int) -> list[np.ndarray]:
    """As :func:`best`, of each row."""
    k = min(k, scores_BC.shape[1])
    if k == 0:
        return [np.zeros(0, np.int64)] * len(scores_BC)
    floor_B = kth_of_each(candidates_of_each(scores_BC, k), k)
    hopeful_BC = scores_BC >= floor_B[:, None]
    if not np.isfinite(floor_B).all():
        hopeful_BC &= scores_BC > -np.inf
    rows_R, places_R = np.divmod(np.flatnonzero(hopeful_BC), scores_BC.shape[1])
    if len(places_R) > _TIES * k * len(scores_BC):
        return [_best_of_ties(scores_C, k) for scores_C in scores_BC]
    chosen = best_of_owned(scores_BC[rows_R, places_R], rows_R, places_R, k=k, owners=len(scores_BC))
    return [places_R[found] for found in chosen]


def best_of_owned(
    scores_R: np.ndarray, owners_R: np.ndarray, places_R: np.ndarray, *, k: int, owners: int
) -> list[np.ndarray]:
    """The best k of each owner's scores, best first; equal ones by place.

    Args:
        scores_R: Float scores without NaN.
        owners_R: Whose each is, from 0.
        places_R: What decides between equal scores.
        k: How many at most.
        owners: How many there are.

    Returns:
        For each owner where its best stand in R.
    """
    order_R = np.lexsort((places_R, -scores_R, owners_R))
    ends = np.cumsum(np.bincount(owners_R, minlength=owners)).tolist()
    return [order_R[start : min(start + k, end)] for start, end in zip([0, *ends], ends, strict=False)]


def candidates_of_each(scores_BC: np.ndarray, k: int) -> np.ndarray:
    """Few of each row's scores whose k-th best is at most the row's k-th best; the row itself where k is large.

    They are the highest of each group. Groups are every q-th position: their best is then found by comparing whole
    rows, at the speed of the memory.
    """
    groups = scores_BC.shape[1] // _GROUP
    if groups < 4 * k:
        return scores_BC
    best_BQ: np.ndarray = scores_BC[:, : groups * _GROUP].reshape(len(scores_BC), _GROUP, groups).max(1)
    return best_BQ


def kth_of_each(scores_BC: np.ndarray, k: int) -> np.ndarray:
    """The k-th highest score of each row; k is at least 1 and at most C."""
    below = scores_BC.shape[1] - k
    kth_B: np.ndarray = np.partition(scores_BC, below, axis=1)[:, below]
    return kth_B


def _best_of_ties(scores_C: np.ndarray, k: int) -> np.ndarray:
    """As :func:`best`, where very many scores are equal: none of them is sorted but those that are returned."""
    kth = kth_of_each(scores_C[None], k)[0]
    chosen = np.flatnonzero(scores_C > kth)
    if np.isfinite(kth):
        chosen = np.concatenate([chosen, np.flatnonzero(scores_C == kth)[: k - len(chosen)]])
    ranked: np.ndarray = chosen[np.lexsort((chosen, -scores_C[chosen]))]
    return ranked
