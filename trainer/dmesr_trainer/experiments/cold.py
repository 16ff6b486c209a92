"""How well a model places items that it never met in training (§4.4's long tail, taken to its end).

Shapes: C measured users, N items, K candidates.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dmesr_trainer import metrics
from dmesr_trainer.config import EvaluationConfig
from dmesr_trainer.evaluation import score
from dmesr_trainer.experiments.data import Data
from dmesr_trainer.models.recommender import Recommender

_SEED_PLACE = 2  # beside the draws for validation and test


def rivals(data: Data, config: EvaluationConfig) -> NDArray[np.int64]:
    """Draws for each measured user different items with training events that the user never met.

    The same for every method and every seed of training.

    Returns:
        int64 [C, K].

    Raises:
        ValueError: A user has met too many of the trained items.
    """
    assert data.cold is not None
    sequences, cold = data.sequences, data.cold
    rng = np.random.default_rng([config.seed, _SEED_PLACE])
    trained = np.flatnonzero(sequences.train_counts_N)
    drawn_CK = np.empty((len(cold.users_C), config.negatives), np.int64)
    for row, user in enumerate(cold.users_C.tolist()):
        unseen = np.setdiff1d(trained, sequences.events(user))
        if len(unseen) < config.negatives:
            raise ValueError(
                f"user {sequences.user_ids[user]!r} has met all but {len(unseen)} of {len(trained)} trained items, so "
                f"{config.negatives} candidates cannot be drawn; set evaluation.negatives to {len(unseen)} or less"
            )
        drawn_CK[row] = rng.choice(unseen, size=config.negatives, replace=False)
    return drawn_CK


def ranks_of_scores(
    scores_CN: NDArray[np.float32], data: Data, rivals_CK: NDArray[np.int64]
) -> dict[str, NDArray[np.int64]]:
    """The place of each new item among its rivals ("sampled"), and among all trained items that the user has not met.

    Args:
        scores_CN: Of all items; -inf for one that cannot be recommended.
        data: With events of items left out.
        rivals_CK: From `rivals`.

    Returns:
        int64 [C] by kind. Ties count against the model.
    """
    assert data.cold is not None
    every_C, targets_C = np.arange(len(scores_CN)), data.cold.targets_C
    positives_C = scores_CN[every_C, targets_C]
    sampled_C = metrics.ranks(positives_C, scores_CN[every_C[:, None], rivals_CK])
    others_CN = np.where(data.sequences.train_counts_N > 0, scores_CN, np.nan)
    full_C = np.empty_like(sampled_C)
    for row, user in enumerate(data.cold.users_C.tolist()):
        others_CN[row, data.sequences.events(user)] = np.nan
        others_N = others_CN[row][~np.isnan(others_CN[row])]
        full_C[row] = metrics.ranks(positives_C[row : row + 1], others_N[None])[0]
    return {"sampled": sampled_C, "full": full_C}


@torch.no_grad()
def evaluate(model: Recommender, data: Data, config: EvaluationConfig) -> dict[str, NDArray[np.int64]]:
    """`ranks_of_scores` of a trained model. A new item has no part of its own: its semantics alone place it.

    Args:
        model: In evaluation mode, on any device.
        data: With events of items left out.
        config: How many candidates.
    """
    assert data.cold is not None
    items_NV = model.item_vectors()
    indexed_N = model.indexed_N
    # The table of ids has a row for every item; that of an item without training holds nothing that was learned.
    rows = []
    for start in range(0, len(data.cold.users_C), config.users_per_batch):
        users = data.cold.users_C[start : start + config.users_per_batch].tolist()
        histories = [data.sequences.events(user) for user in users]
        scores_BN = score(model, items_NV, histories).masked_fill(~indexed_N, -torch.inf)
        rows.append(scores_BN.float().cpu().numpy())
    return ranks_of_scores(np.concatenate(rows), data, rivals(data, config))
