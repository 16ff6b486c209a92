"""Windows of the training events, drawn anew each epoch. Shapes: B windows, L positions, U users, W windows in all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmesr_trainer.sequences import Sequences


class Batch(NamedTuple):
    """Windows padded at the end; padding is item 0 and masked.

    Attributes:
        inputs_BL: int64 item indexes.
        targets_BL: int64; the event after each input.
        mask_BL: bool; true where there is an event.
        negatives_BL: int64; an item that the user did not meet in training, for losses that want one.
    """

    inputs_BL: Tensor
    targets_BL: Tensor
    mask_BL: Tensor
    negatives_BL: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(*(None if tensor is None else tensor.to(device) for tensor in self))


class Windows:
    """Cuts every user's training events into windows of at most L inputs.

    With random windows each epoch tiles a history from another offset: every event is a target exactly once an epoch,
    and long histories are used whole. Otherwise a user gives the last L inputs, as the paper's code does.
    """

    def __init__(
        self, sequences: Sequences, *, max_history: int, batch_size: int, random: bool, negatives: bool, seed: int
    ) -> None:
        """Builds it.

        Args:
            sequences: The histories; only their training events are used.
            max_history: L.
            batch_size: B.
            random: Whether windows are drawn anew each epoch.
            negatives: Whether each target gets a negative.
            seed: Of all draws.
        """
        self._sequences, self._length, self._batch_size, self._random = sequences, max_history, batch_size, random
        self._rng = np.random.default_rng([seed, 2])
        # A target needs an input before it.
        self._users = np.flatnonzero(sequences.train_lengths_U >= 2)
        self._draws = _Negatives(sequences, self._rng) if negatives else None

    def __len__(self) -> int:
        """Batches of an epoch, at most."""
        inputs = self._sequences.train_lengths_U[self._users] - 1
        windows = np.ceil(inputs / self._length) + 1 if self._random else np.ones(len(inputs))
        return int(np.ceil(np.where(inputs <= self._length, 1, windows).sum() / self._batch_size))

    def epoch(self) -> Iterator[Batch]:
        """One pass over the training events, in random order."""
        users_W, starts_W, stops_W = self._windows()
        order_W = self._rng.permutation(len(users_W))
        for first in range(0, len(order_W), self._batch_size):
            rows_B = order_W[first : first + self._batch_size]
            yield self._batch(users_W[rows_B], starts_W[rows_B], stops_W[rows_B])

    def _windows(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        users, starts, stops = [], [], []
        for user in self._users:
            inputs = int(self._sequences.train_lengths_U[user]) - 1
            if inputs <= self._length:
                cuts = np.array([0, inputs])
            elif self._random:
                offset = int(self._rng.integers(self._length))
                cuts = np.unique(np.concatenate([[0], np.arange(offset, inputs, self._length), [inputs]]))
            else:
                cuts = np.array([inputs - self._length, inputs])
            users.append(np.full(len(cuts) - 1, user))
            starts.append(cuts[:-1])
            stops.append(cuts[1:])
        return np.concatenate(users), np.concatenate(starts), np.concatenate(stops)

    def _batch(self, users_B: NDArray[np.int64], starts_B: NDArray[np.int64], stops_B: NDArray[np.int64]) -> Batch:
        events_E, first_B = self._sequences.events_E, self._sequences.starts_U1[users_B] + starts_B
        lengths_B = stops_B - starts_B
        steps_L = np.arange(lengths_B.max())
        mask_BL = steps_L < lengths_B[:, None]
        place_BL = np.where(mask_BL, first_B[:, None] + steps_L, 0)
        inputs_BL = np.where(mask_BL, events_E[place_BL], 0)
        targets_BL = np.where(mask_BL, events_E[np.where(mask_BL, place_BL + 1, 0)], 0)
        negatives_BL = None
        if self._draws is not None:
            negatives_BL = torch.from_numpy(self._draws.draw(np.broadcast_to(users_B[:, None], mask_BL.shape)))
        return Batch(
            inputs_BL=torch.from_numpy(inputs_BL),
            targets_BL=torch.from_numpy(targets_BL),
            mask_BL=torch.from_numpy(mask_BL),
            negatives_BL=negatives_BL,
        )


class _Negatives:
    """Uniform items with training events that the user did not meet in training."""

    def __init__(self, sequences: Sequences, rng: np.random.Generator) -> None:
        self._rng = rng
        self._n_items = sequences.n_items
        self._items = np.flatnonzero(sequences.train_counts_N)
        met = [np.unique(sequences.train(user)) + user * self._n_items for user in range(sequences.n_users)]
        self._met = np.concatenate(met)  # sorted, since users are
        self._most_met = max(map(len, met))
        if self._most_met >= len(self._items):
            raise ValueError(
                f"a user has met all {len(self._items)} items, so no negative can be drawn for a pairwise loss; "
                'use loss.name = "softmax"'
            )

    def draw(self, users_BL: NDArray[np.int64]) -> NDArray[np.int64]:
        drawn_BL = self._rng.choice(self._items, size=users_BL.shape)
        while True:
            keys = users_BL * self._n_items + drawn_BL
            place = np.minimum(np.searchsorted(self._met, keys), len(self._met) - 1)
            again = self._met[place] == keys
            if not again.any():
                return drawn_BL
            drawn_BL[again] = self._rng.choice(self._items, size=int(again.sum()))
