"""Recommendation losses. Shapes: P targets, C targets of a chunk, M candidate items, V vector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Logits held at a time. Chunks that stay in the processor's cache make the loss about 1.6 times as fast as one P×M
# matrix, and the memory does not grow with P.
_CHUNK_LOGITS = {"cpu": 5_000_000, "cuda": 200_000_000}


def softmax_loss(states_PV: Tensor, items_MV: Tensor, targets_P: Tensor) -> Tensor:
    """Cross-entropy of the next item among all candidates.

    Args:
        states_PV: The user vector before each target.
        items_MV: Every candidate's vector.
        targets_P: int64 rows of `items_MV`.

    Returns:
        The mean over targets.
    """
    with torch.autocast(states_PV.device.type, enabled=False):
        # PyTorch gives `apply` no types.
        loss: Tensor = _LinearCrossEntropy.apply(states_PV.float(), items_MV.float(), targets_P)  # type: ignore[no-untyped-call]
        return loss


def candidate_chances(shares_M: Tensor, *, targets: int, drawn_share: float) -> Tensor:
    """How likely each candidate of a sampled softmax was to be one.

    A candidate is one of the batch's targets or was drawn at random. Taking the logarithm off its logit makes the sum
    in the denominator an unbiased estimate of the sum over all items.

    Args:
        shares_M: Each candidate's share of the training events.
        targets: P.
        drawn_share: The share of all items that is drawn at random.
    """
    return 1.0 - (1.0 - shares_M) ** targets * (1.0 - drawn_share)


def bce_loss(states_PV: Tensor, positives_PV: Tensor, negatives_PV: Tensor) -> Tensor:
    """Eq. 7: each target beside one item that the user did not meet; the mean over targets."""
    positive_P = torch.linalg.vecdot(states_PV, positives_PV)
    negative_P = torch.linalg.vecdot(states_PV, negatives_PV)
    return (nn.functional.softplus(-positive_P) + nn.functional.softplus(negative_P)).mean()


class _LinearCrossEntropy(torch.autograd.Function):
    """cross_entropy(states @ items.T, targets), chunk by chunk, with the gradients made on the way.

    With p = softmax(logits) the gradient by the logits is (p - onehot(target)) / P; it is written over the logits while
    they are still in cache.
    """

    @staticmethod
    def forward(ctx: Any, states_PV: Tensor, items_MV: Tensor, targets_P: Tensor) -> Tensor:
        n_targets, n_items = len(states_PV), len(items_MV)
        rows = max(1, min(n_targets, _CHUNK_LOGITS[states_PV.device.type] // n_items))
        by_states_PV, by_items_MV = torch.empty_like(states_PV), torch.zeros_like(items_MV)
        logits_CM = states_PV.new_empty(rows, n_items)
        total = states_PV.new_zeros(())
        for start in range(0, n_targets, rows):
            chunk_CV, target_C1 = states_PV[start : start + rows], targets_P[start : start + rows, None]
            part_CM = torch.mm(chunk_CV, items_MV.T, out=logits_CM[: len(chunk_CV)])
            hit_C1, most_C1 = part_CM.gather(1, target_C1), part_CM.amax(1, keepdim=True)
            sum_C1 = part_CM.sub_(most_C1).exp_().sum(1, keepdim=True)
            total += (sum_C1.log() + most_C1 - hit_C1).sum()
            part_CM.div_(sum_C1 * n_targets)
            part_CM.scatter_add_(1, target_C1, torch.full_like(sum_C1, -1.0 / n_targets))
            torch.mm(part_CM, items_MV, out=by_states_PV[start : start + rows])
            by_items_MV.addmm_(part_CM.T, chunk_CV)
        ctx.save_for_backward(by_states_PV, by_items_MV)
        return total / n_targets

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        by_states_PV, by_items_MV = ctx.saved_tensors
        return grads[0] * by_states_PV, grads[0] * by_items_MV, None
