"""What a backbone is. Shapes: B sequences, L positions, D width of a view."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    """Turns a sequence of item vectors into the user's state at each position.

    Attributes:
        causal: Whether a position sees only what is not later. The cross-attention's mask follows it: without it,
            position k would see item k+1, its own label. A backbone that is not causal learns from hidden events: a
            position to guess holds the mask's vector in every view.
        max_history: L at most.
    """

    causal: bool
    max_history: int

    @abstractmethod
    def forward(self, inputs_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        """Runs the sequence model.

        Args:
            inputs_BLD: Oldest first, padded at the end.
            lengths_B: int64; how many positions count.

        Returns:
            float32 [B, L, D].
        """

    def state_at(self, inputs_BLD: Tensor, lengths_B: Tensor, place_B: Tensor) -> Tensor:
        """What :meth:`forward` gives at one position of each sequence, where it can with less work.

        Args:
            inputs_BLD: As there.
            lengths_B: As there.
            place_B: int64; the position.

        Returns:
            float32 [B, D].
        """
        return at_place(self(inputs_BLD, lengths_B), place_B)


def at_place(states_BLD: Tensor, place_B: Tensor) -> Tensor:
    """One position of each sequence, [B, D]."""
    return states_BLD.gather(1, place_B[:, None, None].expand(-1, 1, states_BLD.shape[2])).squeeze(1)
