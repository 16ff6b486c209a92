"""Adapters: a source's vectors in the recommender's space (eq. 1 and 4). Shapes: N items, D0 → d1 → D."""

from __future__ import annotations

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

    def forward(self, vectors_ND0: Tensor) -> Tensor:  # noqa: D102
        if not self.fold:
            adapted_ND: Tensor = self.second(self.first(vectors_ND0))
            return adapted_ND
        weight_DD0 = self.second.weight @ self.first.weight
        bias_D = torch.addmv(self.second.bias, self.second.weight, self.first.bias)
        return nn.functional.linear(vectors_ND0, weight_DD0, bias_D)
