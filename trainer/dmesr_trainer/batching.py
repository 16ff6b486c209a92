"""Windows of the training events, drawn anew each epoch. Shapes: B windows, L positions, U users, W windows in all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmesr_trainer.config import BackboneConfig, TrainConfig
from dmesr_trainer.sequences import Sequences

# Streams of random numbers that are drawn side by side, so that one does not move the other.
_WINDOWS, _NEGATIVES, _MASKS = 2, 3, 4


class Batch(NamedTuple):
    """Windows padded at the end. Padding is item 0 and masked out.

    Attributes:
        inputs_BL: int64 item indexes; 0 where the event is hidden.
        targets_BL: int64; the event after each input or, in windows with hidden events, the hidden event itself.
        mask_BL: bool; true where there is an event, hidden or not.
        negatives_BL: int64; an item that the user did not meet in training, for losses that want one.
        hidden_BL: bool; which events a bidirectional backbone has to guess. None for windows whose every position
            guesses the next event.
        weight: What the mean over these targets counts beside those of the other processes that share the batch.
    """

    inputs_BL: Tensor
    targets_BL: Tensor
    mask_BL: Tensor
    negatives_BL: Tensor | None = None
    hidden_BL: Tensor | None = None
    weight: float = 1.0

    @property
    def shown_BL(self) -> Tensor:
        """Where the model sees an item."""
        return self.mask_BL if self.hidden_BL is None else self.mask_BL & ~self.hidden_BL

    @property
    def asked_BL(self) -> Tensor:
        """Where it has to name one."""
        return self.mask_BL if self.hidden_BL is None else self.hidden_BL

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return self._replace(
            inputs_BL=self.inputs_BL.to(device),
            targets_BL=self.targets_BL.to(device),
            mask_BL=self.mask_BL.to(device),
            negatives_BL=None if self.negatives_BL is None else self.negatives_BL.to(device),
            hidden_BL=None if self.hidden_BL is None else self.hidden_BL.to(device),
        )

    def part(self, rank: int, *, of: int) -> Batch:
        """The windows of one of the processes that share the batch.

        Args:
            rank: Which process.
            of: How many they are.
        """
        rows = slice(rank, None, of)
        counted = int(self.asked_BL[rows].sum())
        if not counted:  # the end of an epoch: this process takes part with something that counts nothing
            rows = slice(0, 1)
        return Batch(
            inputs_BL=self.inputs_BL[rows],
            targets_BL=self.targets_BL[rows],
            mask_BL=self.mask_BL[rows],
            negatives_BL=None if self.negatives_BL is None else self.negatives_BL[rows],
            hidden_BL=None if self.hidden_BL is None else self.hidden_BL[rows],
            weight=counted * of / int(self.asked_BL.sum()),
        )


class Windows:
    """Cuts every user's training events into windows of at most L + 1 events: L inputs and as many targets.

    With random windows each epoch tiles a history from another offset: every event is a target exactly once an epoch,
    and long histories are used whole. Otherwise a user gives the last window, as the paper's code does. With hidden
    events the windows are the same, but all L + 1 events stand in a row and some of them are hidden.

    An epoch's draws depend on the seed and the epoch's number alone, so that a run can go on from any epoch.
    """

    def __init__(
        self,
        sequences: Sequences,
        *,
        max_history: int,
        batch_size: int,
        random: bool,
        negatives: bool,
        seed: int,
        hiding: BackboneConfig | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Builds it.

        Args:
            sequences: The histories; only their training events are used.
            max_history: L.
            batch_size: B.
            random: Whether windows are drawn anew each epoch.
            negatives: Whether each target gets a negative.
            seed: Of all draws.
            hiding: `hidden_share` and `hidden_last_share`; None for windows that guess the next event.
            rank: Which of the processes that share every batch this one is.
            world_size: How many they are.

        Raises:
            ValueError: No negative can be drawn.
        """
        self._sequences, self._length, self._batch_size, self._random = sequences, max_history, batch_size, random
        self._seed, self._hiding, self._rank, self._world_size = seed, hiding, rank, world_size
        # A target needs an input before it.
        self._users = np.flatnonzero(sequences.train_lengths_U >= 2)
        self._inputs = sequences.train_lengths_U[self._users] - 1
        self._negatives = _Negatives(sequences) if negatives else None
        self.epochs_drawn = 0

    @classmethod
    def of(cls, config: TrainConfig, sequences: Sequences, *, rank: int = 0, world_size: int = 1) -> Windows:
        """The windows that a run is trained on.

        Args:
            config: The run's settings.
            sequences: The histories.
            rank: Which of the processes this one is.
            world_size: How many they are.
        """
        return cls(
            sequences,
            max_history=config.backbone.max_history,
            batch_size=config.optimiser.batch_size,
            random=config.optimiser.windows == "random",
            negatives=config.loss.name == "bce",
            seed=config.seed,
            hiding=config.backbone if config.backbone.name == "bert4rec" else None,
            rank=rank,
            world_size=world_size,
        )

    def __len__(self) -> int:
        """Batches of an epoch, at most."""
        windows = np.ceil(self._inputs / self._length) + 1 if self._random else np.ones(len(self._inputs))
        return int(np.ceil(np.where(self._inputs <= self._length, 1, windows).sum() / self._batch_size))

    def epoch(self, number: int | None = None) -> Iterator[Batch]:
        """One pass over the training events, in random order.

        Args:
            number: From 1; the one after the last when None.
        """
        self.epochs_drawn = number = self.epochs_drawn + 1 if number is None else number
        rng = np.random.default_rng([self._seed, _WINDOWS, number])
        draws = {kind: np.random.default_rng([self._seed, kind, number]) for kind in (_NEGATIVES, _MASKS)}
        users_W, starts_W, stops_W = self._windows(rng)
        order_W = rng.permutation(len(users_W))
        for first in range(0, len(order_W), self._batch_size):
            rows_B = order_W[first : first + self._batch_size]
            batch = self._batch(users_W[rows_B], starts_W[rows_B], stops_W[rows_B], draws=draws)
            # All processes draw the whole batch, so that their parts are those of one process that works alone.
            yield batch if self._world_size == 1 else batch.part(self._rank, of=self._world_size)

    def _windows(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        inputs_U, length = self._inputs, self._length
        # Where a user's first window ends; every later one is as long as L, but for the last.
        first_U = np.minimum(inputs_U, length)
        long_U = inputs_U > length
        if not self._random:
            return self._users, inputs_U - first_U, inputs_U
        first_U[long_U] = rng.integers(1, length + 1, size=int(long_U.sum()))
        more_U = -((first_U - inputs_U) // length)
        users_W = np.repeat(np.arange(len(inputs_U)), more_U + 1)
        number_W = np.arange(len(users_W)) - np.repeat(np.cumsum(more_U + 1) - more_U - 1, more_U + 1)
        stops_W = np.minimum(inputs_U[users_W], first_U[users_W] + number_W * length)
        starts_W = np.maximum(0, first_U[users_W] + (number_W - 1) * length)
        return self._users[users_W], starts_W, stops_W

    def _batch(
        self,
        users_B: NDArray[np.int64],
        starts_B: NDArray[np.int64],
        stops_B: NDArray[np.int64],
        *,
        draws: dict[int, np.random.Generator],
    ) -> Batch:
        events_E, first_B = self._sequences.events_E, self._sequences.starts_U1[users_B] + starts_B
        # In a row where events are hidden, the last target is one more event.
        lengths_B = stops_B - starts_B + (self._hiding is not None)
        steps_L = np.arange(lengths_B.max())
        mask_BL = steps_L < lengths_B[:, None]
        place_BL = np.where(mask_BL, first_B[:, None] + steps_L, 0)
        inputs_BL = np.where(mask_BL, events_E[place_BL], 0)
        hidden_BL = None
        if self._hiding is None:
            targets_BL = np.where(mask_BL, events_E[np.where(mask_BL, place_BL + 1, 0)], 0)
        else:
            hidden_BL = _hide(lengths_B, mask_BL, config=self._hiding, rng=draws[_MASKS])
            targets_BL, inputs_BL = np.where(hidden_BL, inputs_BL, 0), np.where(hidden_BL, 0, inputs_BL)
        negatives_BL = None
        if self._negatives is not None:
            users_BL = np.broadcast_to(users_B[:, None], mask_BL.shape)
            negatives_BL = torch.from_numpy(self._negatives.draw(users_BL, rng=draws[_NEGATIVES]))
        return Batch(
            inputs_BL=torch.from_numpy(inputs_BL),
            targets_BL=torch.from_numpy(targets_BL),
            mask_BL=torch.from_numpy(mask_BL),
            negatives_BL=negatives_BL,
            hidden_BL=None if hidden_BL is None else torch.from_numpy(hidden_BL),
        )


def _hide(
    lengths_B: NDArray[np.int64], mask_BL: NDArray[np.bool_], *, config: BackboneConfig, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Which events are hidden: a random share of a window's; of some windows the last alone, as when recommending."""
    hidden_BL = (rng.random(mask_BL.shape) < config.hidden_share) & mask_BL
    last_alone_B = (rng.random(len(lengths_B)) < config.hidden_last_share) | ~hidden_BL.any(1)
    hidden_BL[last_alone_B] = False
    hidden_BL[last_alone_B, lengths_B[last_alone_B] - 1] = True
    return hidden_BL


class _Negatives:
    """Uniform items with training events that the user did not meet in training."""

    def __init__(self, sequences: Sequences) -> None:
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

    def draw(self, users_BL: NDArray[np.int64], *, rng: np.random.Generator) -> NDArray[np.int64]:
        drawn_BL = rng.choice(self._items, size=users_BL.shape)
        while True:
            keys = users_BL * self._n_items + drawn_BL
            place = np.minimum(np.searchsorted(self._met, keys), len(self._met) - 1)
            again = self._met[place] == keys
            if not again.any():
                return drawn_BL
            drawn_BL[again] = rng.choice(self._items, size=int(again.sum()))
