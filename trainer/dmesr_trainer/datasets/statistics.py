"""What a dataset amounts to, beside what the paper's Table 1 says of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from dmesr import RejectedRow

from dmesr_trainer.datasets.base import Dataset, LeavesOut
from dmesr_trainer.datasets.events import Counts, FilteredEvents, IsFiltered


@dataclass(frozen=True)
class Filtered:
    """What was left out before it was counted."""

    rule: str
    period: str
    rounds: int  # of the filter
    before: Counts
    equal_rows: int  # rows equal to another in user, item and time, which count once


@dataclass(frozen=True)
class Statistics:
    """The columns of Table 1, and what the catalogue holds besides."""

    users: int
    items: int  # with at least one interaction
    interactions: int
    mean_length: float  # interactions of a user
    sparsity: float  # share of the users' and items' pairs without an interaction
    repeats: int  # interactions with an item that the user had before
    catalogue: int  # items, interactions or not
    without_item: int  # ids with interactions that the catalogue lacks
    with_picture: int
    rejected: int  # rows of the catalogue that cannot be used
    rejected_interactions: int
    filtered: Filtered | None = None

    @property
    def share_with_picture(self) -> float:
        """Of the catalogue."""
        return self.with_picture / self.catalogue if self.catalogue else 0.0


def statistics(dataset: Dataset) -> Statistics:
    """Counts the dataset.

    Raises:
        DatasetError: Its files cannot be read.
    """
    events = dataset.interactions()
    users, user_E = np.unique(events.user_ids, return_inverse=True)
    items, item_E = np.unique(events.item_ids, return_inverse=True)
    pairs = len(np.unique(user_E.astype(np.int64) * len(items) + item_E))
    without_item = set(items.tolist())
    catalogue = pictures = rejected = 0
    for item in dataset.items():
        if isinstance(item, RejectedRow):
            rejected += 1
            continue
        catalogue += 1
        pictures += item.picture is not None
        without_item.discard(item.item_id)
    return Statistics(
        users=len(users),
        items=len(items),
        interactions=len(events),
        mean_length=len(events) / len(users) if len(users) else 0.0,
        sparsity=1.0 - len(events) / (len(users) * len(items)) if len(events) else 1.0,
        repeats=len(events) - pairs,
        catalogue=catalogue,
        without_item=len(without_item),
        with_picture=pictures,
        rejected=rejected,
        rejected_interactions=dataset.rejected if isinstance(dataset, LeavesOut) else 0,
        filtered=_filtered(dataset.events) if isinstance(dataset, IsFiltered) else None,
    )


def _filtered(events: FilteredEvents) -> Filtered:
    return Filtered(
        rule=str(events.core),
        period=str(events.period),
        rounds=events.rounds,
        before=events.before,
        equal_rows=events.twice,
    )
