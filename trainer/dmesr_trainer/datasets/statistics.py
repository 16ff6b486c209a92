"""What a dataset amounts to, beside what the paper's Table 1 says of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from dmesr import RejectedRow

from dmesr_trainer.datasets.base import Dataset


@dataclass(frozen=True)
class Statistics:
    """The columns of Table 1, and what the catalogue holds besides."""

    users: int
    items: int  # with at least one interaction
    interactions: int
    mean_length: float  # interactions of a user
    sparsity: float  # share of the users' and items' pairs without an interaction
    catalogue: int  # items, interactions or not
    with_picture: int
    rejected: int  # rows of the catalogue that cannot be used
    rejected_interactions: int

    @property
    def share_with_picture(self) -> float:
        """Of the catalogue."""
        return self.with_picture / self.catalogue if self.catalogue else 0.0


@dataclass(frozen=True)
class PaperRow:
    """A row of Table 1, and why ours differs."""

    users: int
    items: int
    interactions: int
    mean_length: float
    sparsity: float
    difference: str


PAPER = {
    "movielens": PaperRow(
        users=610,
        items=9722,
        interactions=100_808,
        mean_length=165.26,
        sparsity=0.9830,
        difference=(
            "The official files hold 9,724 rated films and 100,836 ratings. The paper has 2 films and 28 ratings "
            "fewer and does not say which; nothing is filtered here, as its §4.1.1 says."
        ),
    )
}


def statistics(dataset: Dataset) -> Statistics:
    """Counts the dataset.

    Raises:
        DatasetError: Its files cannot be read.
    """
    interactions = dataset.interactions()
    users = len(np.unique(interactions.user_ids))
    items = len(np.unique(interactions.item_ids))
    catalogue = pictures = rejected = 0
    for item in dataset.items():
        if isinstance(item, RejectedRow):
            rejected += 1
            continue
        catalogue += 1
        pictures += item.picture is not None
    return Statistics(
        users=users,
        items=items,
        interactions=len(interactions),
        mean_length=len(interactions) / users if users else 0.0,
        sparsity=1.0 - len(interactions) / (users * items) if users and items else 1.0,
        catalogue=catalogue,
        with_picture=pictures,
        rejected=rejected,
        rejected_interactions=getattr(dataset, "rejected", 0),
    )
