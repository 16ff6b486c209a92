"""Which items meet in users' training events; what is held out is never looked at.

Shapes: E training events, U users, N items, M items of a batch, P pairs.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from dmesr_trainer.baseline_config import CooccurrenceConfig
from dmesr_trainer.sequences import Sequences

# Rows of the item-by-item matrix that are held dense at a time.
_ROWS = 512


def training_events(sequences: Sequences, *, last: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The training events in one flat list: one user's after the other's, oldest first.

    Args:
        sequences: The histories.
        last: The last so many of each user; 0 takes all.

    Returns:
        int64 users [E] and int64 items [E].
    """
    users_A = np.repeat(np.arange(sequences.n_users), sequences.lengths_U)
    within_A = np.arange(len(sequences.events_E)) - sequences.starts_U1[users_A]
    to_go_A = sequences.train_lengths_U[users_A] - within_A
    chosen_A = (to_go_A > 0) & ((to_go_A <= last) if last else True)
    return users_A[chosen_A], sequences.events_E[chosen_A]


def incidence(sequences: Sequences, *, last: int = 0) -> sparse.csr_array:
    """Users by items: 1.0 where a user met an item in training; float64 [U, N]."""
    users_E, items_E = training_events(sequences, last=last)
    met = np.unique(users_E * sequences.n_items + items_E)
    rows, columns = np.divmod(met, sequences.n_items)
    return sparse.csr_array((np.ones(len(met)), (rows, columns)), shape=(sequences.n_users, sequences.n_items))


def counts(sequences: Sequences, *, window: int) -> sparse.csr_array:
    """How often two different items met: float64 [N, N], symmetric, nothing on the diagonal.

    Args:
        sequences: The histories.
        window: Events of a user at most so far apart; each such pair of events counts. 0 counts the users that met
            both, however far apart.
    """
    shape = (sequences.n_items, sequences.n_items)
    if window == 0:
        met_UN = incidence(sequences)
        found = sparse.coo_array(met_UN.T @ met_UN)
        rows, columns, values = found.row, found.col, found.data
    else:
        users_E, items_E = training_events(sequences)
        first, second = [], []
        for apart in range(1, window + 1):
            same_user = users_E[apart:] == users_E[:-apart]
            first.append(items_E[:-apart][same_user])
            second.append(items_E[apart:][same_user])
        rows, columns = np.concatenate(first + second), np.concatenate(second + first)
        values = np.ones(len(rows))
    other = rows != columns
    made = sparse.coo_array((values[other], (rows[other], columns[other])), shape=shape).tocsr()
    made.sum_duplicates()
    return made


def neighbours(sequences: Sequences, config: CooccurrenceConfig) -> sparse.csr_array:
    """Each item's strongest companions: float64 [N, N], the cosine of their counts; not symmetric where it is cut.

    Args:
        sequences: The histories.
        config: The window, and how many companions an item keeps. Of equals the one with the smaller index stays.
    """
    met_NN = counts(sequences, window=config.window)
    degrees_N = np.asarray(met_NN.sum(axis=1)).ravel()
    scale_N = np.divide(1.0, np.sqrt(degrees_N), out=np.zeros_like(degrees_N), where=degrees_N > 0)
    cosine_NN = (sparse.diags_array(scale_N) @ met_NN @ sparse.diags_array(scale_N)).tocsr()
    if config.neighbours == 0:
        return cosine_NN
    cosine_NN.sort_indices()
    kept = [_strongest(cosine_NN, row, config.neighbours) for row in range(sequences.n_items)]
    places = np.concatenate(kept) if kept else np.zeros(0, np.int64)
    starts = np.concatenate([[0], np.cumsum([len(one) for one in kept])])
    return sparse.csr_array((cosine_NN.data[places], cosine_NN.indices[places], starts), shape=cosine_NN.shape)


def _strongest(matrix: sparse.csr_array, row: int, keep: int) -> NDArray[np.int64]:
    start, stop = matrix.indptr[row], matrix.indptr[row + 1]
    strongest: NDArray[np.int64] = np.argsort(-matrix.data[start:stop], kind="stable")[:keep]
    places: NDArray[np.int64] = np.sort(strongest) + start
    return places


def among(neighbours_NN: sparse.csr_array, items_M: Tensor) -> Tensor:
    """Which of some items are companions, in either direction, or the same: bool [M, M] on the items' device."""
    rows_M = items_M.cpu().numpy()
    part_MM = neighbours_NN[rows_M][:, rows_M].toarray() > 0
    met_MM = torch.from_numpy(part_MM | part_MM.T).to(items_M.device)
    return met_MM | (items_M[:, None] == items_M[None, :])


def gram(matrix_UN: sparse.csr_array, *, diagonal: float) -> NDArray[np.float64]:
    """MᵀM + diagonal·I, dense and in Fortran's order, as LAPACK works in place on it; float64 [N, N]."""
    n_items = matrix_UN.shape[1]
    made_NN = np.empty((n_items, n_items), np.float64, order="F")
    turned_NU = matrix_UN.T.tocsr()
    for start in range(0, n_items, _ROWS):
        rows = slice(start, start + _ROWS)
        # Symmetric, so a block of rows may be written as a block of columns, which lie together.
        made_NN[:, rows] = (turned_NU[rows] @ matrix_UN).toarray().T
    made_NN[np.diag_indices(n_items)] += diagonal
    return made_NN
