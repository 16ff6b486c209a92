"""Users' histories as index sequences, split leave-one-out by time (§4.1.1).

Shapes: E events, U users, N items, H users with held-out events.

For a user with n ≥ 3 events the last is the test target, the one before it the validation target, and the rest is
training. A user with fewer events is training only. The input for the test target is the training events *and* the
validation event.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dmesr_trainer.datasets.base import Interactions

Split = Literal["valid", "test"]

# One training event, one to validate on, one to test on.
MIN_EVENTS_TO_HOLD_OUT = 3


@dataclass(frozen=True)
class Sequences:
    """Every user's events, oldest first, in one flat array.

    Attributes:
        item_ids: The N ids that index values stand for, sorted.
        user_ids: The U user ids, sorted.
        events_E: int64 item indexes; one user's events after the other's.
        starts_U1: int64 [U+1]; user u owns events_E[starts_U1[u]:starts_U1[u + 1]].
    """

    item_ids: tuple[str, ...]
    user_ids: tuple[str, ...]
    events_E: NDArray[np.int64]
    starts_U1: NDArray[np.int64]

    @classmethod
    def from_interactions(cls, interactions: Interactions) -> Sequences:
        """Sorts each user's events by time; equal times keep the order of the file.

        Raises:
            ValueError: There are no interactions.
        """
        if not len(interactions):
            raise ValueError("there are no interactions to train on; give a dataset with at least one event")
        users, user_E = np.unique(interactions.user_ids, return_inverse=True)
        items, item_E = np.unique(interactions.item_ids, return_inverse=True)
        # lexsort is stable, so events with equal user and time stay in file order.
        order_E = np.lexsort((interactions.timestamps, user_E))
        starts_U1 = np.concatenate([[0], np.cumsum(np.bincount(user_E, minlength=len(users)))])
        return cls(
            item_ids=tuple(items.tolist()),
            user_ids=tuple(users.tolist()),
            events_E=item_E[order_E].astype(np.int64),
            starts_U1=starts_U1.astype(np.int64),
        )

    @property
    def n_users(self) -> int:
        """U."""
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        """N: items with at least one event, held-out events included."""
        return len(self.item_ids)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all histories: whether two runs had the same data."""
        digest = hashlib.sha256("\n".join((*self.item_ids, "", *self.user_ids)).encode())
        for values in (self.events_E, self.starts_U1):
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    @cached_property
    def lengths_U(self) -> NDArray[np.int64]:
        """All events of each user."""
        return np.diff(self.starts_U1)

    @cached_property
    def train_lengths_U(self) -> NDArray[np.int64]:
        """Training events of each user."""
        return np.where(self.lengths_U >= MIN_EVENTS_TO_HOLD_OUT, self.lengths_U - 2, self.lengths_U)

    def events(self, user: int) -> NDArray[np.int64]:
        """All of a user's events, held-out ones included: only for what must not be drawn as a negative."""
        return self.events_E[self.starts_U1[user] : self.starts_U1[user + 1]]

    def train(self, user: int) -> NDArray[np.int64]:
        """A user's training events."""
        return self.events_E[self.starts_U1[user] : self.starts_U1[user] + self.train_lengths_U[user]]

    @cached_property
    def held_out_users_H(self) -> NDArray[np.int64]:
        """The users that have a validation and a test event."""
        return np.flatnonzero(self.lengths_U >= MIN_EVENTS_TO_HOLD_OUT)

    def targets_H(self, split: Split) -> NDArray[np.int64]:
        """The held-out item of each of `held_out_users_H`."""
        back = 1 if split == "test" else 2
        return self.events_E[self.starts_U1[self.held_out_users_H + 1] - back]

    def input(self, user: int, split: Split) -> NDArray[np.int64]:
        """What a model may see before the user's held-out event: all events before it."""
        assert self.lengths_U[user] >= MIN_EVENTS_TO_HOLD_OUT
        back = 1 if split == "test" else 2
        return self.events_E[self.starts_U1[user] : self.starts_U1[user + 1] - back]

    @cached_property
    def train_counts_N(self) -> NDArray[np.int64]:
        """Training events of each item. Held-out (user, item) events are not counted."""
        counts_N = np.zeros(self.n_items, np.int64)
        within_E = np.arange(len(self.events_E)) - np.repeat(self.starts_U1[:-1], self.lengths_U)
        is_train_E = within_E < np.repeat(self.train_lengths_U, self.lengths_U)
        np.add.at(counts_N, self.events_E[is_train_E], 1)
        return counts_N
