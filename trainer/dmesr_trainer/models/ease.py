"""EASE (Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data"): a linear floor in closed form.

    G = XᵀX + λI, P = G⁻¹                      X: users by items, 1 where a user met an item in training (eq. 8)
    B_ij = -P_ij / P_jj for i ≠ j, B_jj = 0    (eq. 8)
    score of item j = Σ_i x_i B_ij             over the different items i of the history's last events (eq. 1)

Evaluation uses B itself. An artefact holds vectors, so it carries factors of B. With X = UΣWᵀ,

    P = I/λ - W diag(σ² / λ(σ² + λ)) Wᵀ,  hence for i ≠ j  B_ij = W_i diag(σ² / λ(σ² + λ)) W_jᵀ / P_jj,

and cutting W to the strongest r directions gives an item two slices, `in` and `out`, whose product is the weight. At
r = rank of X, at most the number of users, that is exact, but for the diagonal: an item of the history also
votes for itself, which only shows where seen items are not excluded. `notes` tells the relative error at the rank used.
The last column of an item's vector is a key: it tells the graph which events are the same item, as a repeated item
counts once. It adds nothing to a score.

Shapes: U users, N items, B users of a batch, T history, R rank, V = 2R + 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import lapack
from scipy.sparse.linalg import svds
from torch import Tensor, nn

from dmesr_trainer.config import TrainConfig
from dmesr_trainer.models.cooccurrence import gram, incidence
from dmesr_trainer.models.recommender import Recommender, View
from dmesr_trainer.sequences import Sequences

# Rows of the item-by-item matrix that are worked on at a time.
_ROWS = 1024
# Up to this side all directions are found exactly; above, only the strongest are.
_DENSE_SIDE = 4096
_KEY_STEP = 2.0**-24  # multiples of it up to 1 are exact in float32


class Ease(Recommender):
    """Fitted when it is made; nothing is learned by steps."""

    weights_NN: Tensor
    vectors_NV: Tensor
    trained_N: Tensor

    def __init__(self, *, config: TrainConfig, sequences: Sequences) -> None:
        """Solves the closed form and factorises it.

        Args:
            config: The run's settings.
            sequences: The histories; only training events are used.

        Raises:
            ValueError: λ, the history or the rank is no positive number, or the catalogue is too large.
        """
        super().__init__()
        settings = config.ease
        for name, value in (("l2", settings.l2), ("history", settings.history), ("rank", settings.rank)):
            if value <= 0:
                raise ValueError(f"ease.{name} is {value}; it must be greater than 0")
        if sequences.n_items > settings.max_items:
            raise ValueError(
                f"EASE on {sequences.n_items:,} items needs {12 * sequences.n_items**2 / 1e9:.1f} GB; where they are "
                f"at hand, raise ease.max_items (now {settings.max_items:,})"
            )
        self.method, self.backbone_name, self.sources = config.method, "", ()
        self.max_history = settings.history
        met_UN = incidence(sequences, last=settings.train_last)
        weights_NN, diagonal_N = solve(met_UN, l2=settings.l2)
        in_NR, out_NR = factorise(met_UN, diagonal_N, l2=settings.l2, rank=settings.rank)
        rank = in_NR.shape[1]
        self.views = (View("in", 0, rank), View("out", rank, 2 * rank), View("key", 2 * rank, 2 * rank + 1))
        self.error = relative_error(weights_NN, in_NR, out_NR)
        self.notes = (
            f"figures are those of EASE's full matrix; the artefact's rank {rank} has a relative error of "
            f"{self.error:.2g} (Frobenius, off the diagonal)",
        )
        trained_N = torch.from_numpy(sequences.train_counts_N > 0)
        keys_N1 = (np.arange(sequences.n_items)[:, None] + 1) * _KEY_STEP
        vectors_NV = torch.from_numpy(np.concatenate([in_NR, out_NR, keys_N1], axis=1).astype(np.float32))
        self.register_buffer("weights_NN", torch.from_numpy(weights_NN), persistent=False)
        self.register_buffer("vectors_NV", vectors_NV * trained_N[:, None])
        self.register_buffer("trained_N", trained_N, persistent=False)

    def item_vectors(self) -> Tensor:  # noqa: D102
        return self.vectors_NV

    def parts(self) -> tuple[Tensor, Tensor]:  # noqa: D102
        return self.vectors_NV, self.trained_N

    def exact_scores(self, histories: Sequence[NDArray[np.int64]]) -> Tensor:  # noqa: D102
        rows = []
        for history in histories:
            items = torch.from_numpy(np.unique(history[-self.max_history :])).to(self.weights_NN.device)
            rows.append(self.weights_NN[items].sum(0))
        return torch.stack(rows)

    def user_vectors(self, vectors_BTV: Tensor, lengths_B: Tensor) -> Tensor:  # noqa: D102
        # One more column, so that no axis is empty when T = 0.
        vectors_BTV = nn.functional.pad(vectors_BTV, (0, 0, 0, 1))
        steps_T = torch.arange(vectors_BTV.shape[1], device=lengths_B.device)
        recent_BT = (steps_T < lengths_B[:, None]) & (steps_T >= lengths_B[:, None] - self.max_history)
        keys_BT = vectors_BTV[..., -1]
        same_BTT = (keys_BT[:, :, None] == keys_BT[:, None, :]) & recent_BT[:, None, :]
        earlier_TT = steps_T[None, :] < steps_T[:, None]
        counts_BT = recent_BT & ~(same_BTT & earlier_TT).any(2)
        start, stop = self.views[0].start, self.views[0].stop
        # What lies behind the end may hold anything.
        voting_BTR = vectors_BTV[..., start:stop].masked_fill(~counts_BT[..., None], 0.0)
        sum_BR = voting_BTR.sum(1)
        # In the place of `out`, whose product with the items' counts; `in` and the key meet zeros.
        return nn.functional.pad(sum_BR, (stop, 1))


def solve(met_UN: sparse.csr_array, *, l2: float) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Steck's closed form, in place: 8 bytes for each pair of items while it is solved, then 4 more.

    Args:
        met_UN: 1.0 where a user met an item.
        l2: λ.

    Returns:
        B, float32 [N, N], and the diagonal of P, float64 [N].
    """
    matrix_NN = gram(met_UN, diagonal=l2)
    factor_NN, failed = lapack.dpotrf(matrix_NN, lower=1, overwrite_a=1)
    assert failed == 0  # G is positive definite for every λ > 0
    inverse_NN, failed = lapack.dpotri(factor_NN, lower=1, overwrite_c=1)
    assert failed == 0
    diagonal_N = np.diagonal(inverse_NN).copy()
    weights_NN = np.empty(inverse_NN.shape, np.float32)
    for start in range(0, len(weights_NN), _ROWS):
        rows = slice(start, start + _ROWS)
        stop = min(start + _ROWS, len(weights_NN))
        # LAPACK fills the lower triangle alone: the rows left of the diagonal, and columns below it.
        lower = np.tril(inverse_NN[rows, rows])
        weights_NN[rows, :start] = inverse_NN[rows, :start]
        weights_NN[rows, rows] = lower + np.tril(lower, -1).T
        weights_NN[rows, stop:] = inverse_NN[stop:, rows].T
    weights_NN /= -diagonal_N.astype(np.float32)[None, :]
    np.fill_diagonal(weights_NN, 0.0)
    return weights_NN, diagonal_N


def factorise(
    met_UN: sparse.csr_array, diagonal_N: NDArray[np.float64], *, l2: float, rank: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two factors whose product is B off its diagonal, as far as the rank goes.

    Args:
        met_UN: 1.0 where a user met an item.
        diagonal_N: Of P.
        l2: λ.
        rank: R at most; fewer where X has fewer directions.

    Returns:
        `in` and `out`, float64 [N, R].
    """
    squares_R, directions_NR = _directions(met_UN, rank=rank)
    shares_R = squares_R / (l2 * (squares_R + l2))
    in_NR = directions_NR * np.sqrt(shares_R)
    out_NR = in_NR / diagonal_N[:, None]
    # Both slices of one size, which low precision and nearest-neighbour indexes like.
    balance = np.sqrt(np.linalg.norm(out_NR) / max(float(np.linalg.norm(in_NR)), 1e-30))
    return in_NR * balance, out_NR / balance


def _directions(met_UN: sparse.csr_array, *, rank: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The strongest right singular directions of X: their squared singular values [R] and the directions [N, R]."""
    n_users, n_items = met_UN.shape
    if min(n_users, n_items) > _DENSE_SIDE:
        # A fixed start, so that a run can be repeated.
        _, values_R, turned_RN = svds(met_UN, k=min(rank, min(n_users, n_items) - 1), v0=np.ones(min(n_users, n_items)))
        squares_R, directions_NR = values_R**2, turned_RN.T
    elif n_items <= n_users:
        squares_R, directions_NR = np.linalg.eigh((met_UN.T @ met_UN).toarray())
    else:
        squares_R, users_UR = np.linalg.eigh((met_UN @ met_UN.T).toarray())
        directions_NR = (met_UN.T @ users_UR) / np.sqrt(np.maximum(squares_R, 1e-12))
    order_R = np.argsort(-squares_R)[:rank]
    kept_R = order_R[squares_R[order_R] > 1e-9 * max(float(squares_R.max()), 1e-30)]
    return squares_R[kept_R], directions_NR[:, kept_R]


def relative_error(weights_NN: NDArray[np.float32], in_NR: NDArray[np.float64], out_NR: NDArray[np.float64]) -> float:
    """How far the factors' product is from B off the diagonal, relative to B, in Frobenius' norm."""
    missed, whole = 0.0, 0.0
    for start in range(0, len(weights_NN), _ROWS):
        exact = weights_NN[start : start + _ROWS]
        away = in_NR[start : start + _ROWS] @ out_NR.T - exact
        away[np.arange(len(away)), start + np.arange(len(away))] = 0.0
        missed += float(np.square(away).sum())
        whole += float(np.square(exact, dtype=np.float64).sum())
    return float(np.sqrt(missed / whole)) if whole else 0.0
