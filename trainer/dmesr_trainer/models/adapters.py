"""Adapters: a source's vectors in the recommender's space (eq. 1 and 4). Shapes: N items, S sources, D0 → d1 → D."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Adapter(nn.Module):
    """W2·(W1·e + b1) + b2.

    There is no activation between the two, so W2·W1 can be multiplied first: N·D0·D instead of N·(D0·d1 + d1·D)
    multiplications a step, with the same values and gradients.
    """

    def __init__(self, *, width: int, hidden: int, dim: int, fold: bool, initial_std: float | None = None) -> None:
        """Builds it.

        Args:
            width: D0, or what whitening left of it.
            hidden: d1.
            dim: D.
            fold: Whether to multiply W2·W1 first.
            initial_std: Of what comes out at first, if what goes in has variance 1; None for PyTorch's own start.
        """
        super().__init__()
        self.fold = fold
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, dim)
        if initial_std is not None:
            for layer, std in ((self.first, width**-0.5), (self.second, initial_std * hidden**-0.5)):
                nn.init.normal_(layer.weight, std=std)
                nn.init.zeros_(layer.bias)

    def folded(self) -> tuple[Tensor, Tensor]:
        """W2·W1, float32 [D, D0], and W2·b1 + b2, float32 [D]."""
        return self.second.weight @ self.first.weight, torch.addmv(
            self.second.bias, self.second.weight, self.first.bias
        )

    def forward(self, vectors_ND0: Tensor) -> Tensor:  # noqa: D102
        if not self.fold:
            adapted_ND: Tensor = self.second(self.first(vectors_ND0))
            return adapted_ND
        return nn.functional.linear(vectors_ND0, *self.folded())


def pooled(
    adapters: Sequence[Adapter], vectors: Sequence[Tensor], present_NS: Tensor, *, absent_D: Tensor | None = None
) -> Tensor:
    """The sum of what several folded adapters give, without a pass over memory for each of them.

    Args:
        adapters: S of them.
        vectors: Of each, float32 [N, D0]; zeros where absent.
        present_NS: bool; an absent vector adds nothing, not even the adapter's bias.
        absent_D: What each absent vector adds instead.

    Returns:
        float32 [N, D].
    """
    weights, biases = zip(*(adapter.folded() for adapter in adapters), strict=True)
    flags_NS = present_NS.to(vectors[0].dtype)
    sum_ND = flags_NS @ torch.stack(biases)
    if absent_D is not None:
        sum_ND = torch.addmm(sum_ND, len(adapters) - flags_NS.sum(1, keepdim=True), absent_D[None])
    for weight_DD0, vectors_ND0 in zip(weights, vectors, strict=True):
        sum_ND = torch.addmm(sum_ND, vectors_ND0, weight_DD0.T)
    return sum_ND
