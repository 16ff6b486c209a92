"""Leave-one-out evaluation: 1 positive against sampled unseen items, and against every item (§4.1.4).

Shapes: H users with held-out events, B of them in a batch, N items, C sampled negatives, T history, V vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dmesr_trainer import metrics
from dmesr_trainer.config import EvaluationConfig
from dmesr_trainer.models.recommender import Recommender
from dmesr_trainer.sequences import Sequences, Split

Figures = dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """How well a model ranks the held-out items.

    Attributes:
        split: "valid" or "test".
        k: The cut-off.
        sampled_ranks_H: Rank among 1 + C candidates, by held-out user.
        full_ranks_H: Rank among all items that the user has not met before.
    """

    split: Split
    k: int
    sampled_ranks_H: NDArray[np.int64]
    full_ranks_H: NDArray[np.int64]

    @property
    def figures(self) -> dict[str, Figures]:
        """{"sampled": {"hr@10": …, "ndcg@10": …}, "full": …}."""
        return {
            "sampled": _figures(self.sampled_ranks_H, self.k),
            "full": _figures(self.full_ranks_H, self.k),
        }


def _figures(ranks_H: NDArray[np.int64], k: int) -> Figures:
    return {
        f"hr@{k}": float(metrics.hit_rates(ranks_H, k).mean()) if len(ranks_H) else float("nan"),
        f"ndcg@{k}": float(metrics.ndcgs(ranks_H, k).mean()) if len(ranks_H) else float("nan"),
    }


def negatives(sequences: Sequences, *, split: Split, count: int, seed: int) -> NDArray[np.int64]:
    """Draws for each held-out user `count` different items that the user never met, at no time.

    The draw depends on the sequences, the split, the count and the seed: never on the method.

    Returns:
        int64 [H, C].

    Raises:
        ValueError: A user has met so many items that fewer than `count` are left.
    """
    rng = np.random.default_rng([seed, 0 if split == "valid" else 1])
    drawn_HC = np.empty((len(sequences.held_out_users_H), count), np.int64)
    for row, user in enumerate(sequences.held_out_users_H):
        seen = np.unique(sequences.events(user))
        left = sequences.n_items - len(seen)
        if left < count:
            raise ValueError(
                f"user {sequences.user_ids[user]!r} has met all but {left} of {sequences.n_items} items, so {count} "
                f"unseen negatives cannot be drawn; set evaluation.negatives to {left} or less"
            )
        # The k-th unseen item is k plus the number of seen items before it: no list of all unseen items is made.
        places_C = rng.choice(left, size=count, replace=False)
        drawn_HC[row] = places_C + np.searchsorted(seen - np.arange(len(seen)), places_C, side="right")
    return drawn_HC


@torch.no_grad()
def evaluate(
    model: Recommender,
    sequences: Sequences,
    *,
    split: Split = "test",
    config: EvaluationConfig | None = None,
    negatives_HC: NDArray[np.int64] | None = None,
) -> Evaluation:
    """Ranks each held-out item among sampled unseen items and among all items.

    An item that the model cannot recommend (neither vectors nor a part of its own) ranks behind everything.

    Args:
        model: Any method.
        sequences: The histories; their items are the candidates.
        split: Which held-out event.
        config: Negatives, seed and cut-off.
        negatives_HC: What `negatives` gives for these settings, where the caller evaluates many times.

    Raises:
        ValueError: Too few unseen items, or NaN scores.
    """
    config = config or EvaluationConfig()
    if negatives_HC is None:
        negatives_HC = negatives(sequences, split=split, count=config.negatives, seed=config.seed)
    users_H, targets_H = sequences.held_out_users_H, sequences.targets_H(split)
    sampled_ranks_H = np.empty(len(users_H), np.int64)
    full_ranks_H = np.empty(len(users_H), np.int64)
    was_training = model.training
    model.eval()
    items_NV, indexed_N = model.item_vectors(), model.indexed_N
    for start in range(0, len(users_H), config.users_per_batch):
        rows = slice(start, start + config.users_per_batch)
        histories = [sequences.input(user, split) for user in users_H[rows]]
        scores_BN = score(model, items_NV, histories).masked_fill(~indexed_N, -torch.inf).cpu().numpy()
        every_B, targets_B = np.arange(len(histories)), targets_H[rows]
        positives_B = scores_BN[every_B, targets_B]
        sampled_ranks_H[rows] = metrics.ranks(positives_B, scores_BN[every_B[:, None], negatives_HC[rows]])
        if config.exclude_history:
            for row, history in enumerate(histories):
                scores_BN[row, history] = -np.inf
        # The target itself is no rival, and stays in place where it was in the history (people buy again).
        scores_BN[every_B, targets_B] = -np.inf
        rivals = metrics.ranks(positives_B, scores_BN)
        # A target at -inf ties with everything that was put at -inf, itself included.
        full_ranks_H[rows] = np.minimum(rivals, sequences.n_items)
    model.train(was_training)
    return Evaluation(split=split, k=config.k, sampled_ranks_H=sampled_ranks_H, full_ranks_H=full_ranks_H)


@torch.no_grad()
def score(model: Recommender, items_NV: torch.Tensor, histories: Sequence[NDArray[np.int64]]) -> torch.Tensor:
    """Scores every item for each history (eq. 6), by the same path as the exported user tower.

    A method whose towers only approximate it (`Recommender.exact_scores`) is scored by itself.

    Args:
        model: In evaluation mode.
        items_NV: `model.item_vectors()`.
        histories: Item indexes, oldest first; may be empty.

    Returns:
        float32 [B, N].
    """
    exact_BN = model.exact_scores(histories)
    if exact_BN is not None:
        return exact_BN
    recent = [history[-model.max_history :] for history in histories]
    lengths_B = torch.tensor([len(history) for history in recent], device=items_NV.device)
    items_BT = np.zeros((len(recent), max((len(history) for history in recent), default=0)), np.int64)
    for row, history in enumerate(recent):
        items_BT[row, : len(history)] = history
    vectors_BTV = items_NV[torch.from_numpy(items_BT).to(items_NV.device)]
    return model.user_vectors(vectors_BTV, lengths_B) @ items_NV.T
