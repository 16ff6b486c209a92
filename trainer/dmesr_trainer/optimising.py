"""How a run's parameters are moved."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from dmesr_trainer.config import OptimiserConfig


def adam(model: torch.nn.Module, settings: OptimiserConfig) -> torch.optim.AdamW:
    """Adam with decoupled weight decay, in one pass over the parameters: the id tables are long.

    Args:
        model: Whose parameters it moves.
        settings: Its rate and decay.
    """
    return torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )


def learning_rate_share(settings: OptimiserConfig, *, steps: int) -> Callable[[int], float]:
    """What the learning rate is multiplied by at each step.

    Args:
        settings: Warm-up and decay.
        steps: Of the run, at most.
    """

    def share(step: int) -> float:
        warm = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
        if settings.decay == "none":
            return warm
        return warm * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / steps)))

    return share
