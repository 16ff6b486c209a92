"""What the parts train on: histories and vectors made up to size, or MovieLens where its folder is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from dmesr_trainer import datasets
from dmesr_trainer.sequences import Sequences
from dmesr_trainer.sources import Sources

SOURCES = ("text", "hybrid", "image", "original")
# ml-latest-small: users, items, events.
MOVIELENS_USERS, MOVIELENS_ITEMS, MOVIELENS_EVENTS = 610, 9_724, 100_836


def full_histories(*, users: int, items: int, length: int, seed: int = 0) -> Sequences:
    """Histories that fill their windows: L + 1 training events of each user, then one to validate and one to test on.

    Items are drawn as shops sell them, few often and most seldom; every item is met.

    Args:
        users: U.
        items: N.
        length: L.
        seed: Of the draw.
    """
    return _histories(np.full(users, length + 3), items=items, seed=seed)


def like_movielens(seed: int = 0) -> Sequences:
    """Histories as many, as long and over as many items as MovieLens ml-latest-small has."""
    rng = np.random.default_rng(seed)
    share_U = rng.lognormal(sigma=1.3, size=MOVIELENS_USERS)
    most = MOVIELENS_ITEMS // 4
    lengths_U = 20 + share_U / share_U.sum() * (MOVIELENS_EVENTS - 20 * MOVIELENS_USERS)
    return _histories(np.minimum(lengths_U, most).astype(np.int64), items=MOVIELENS_ITEMS, seed=seed)


def _histories(lengths_U: np.ndarray, *, items: int, seed: int) -> Sequences:
    rng = np.random.default_rng(seed)
    # Zipf by rank: the share of the item at rank r falls as 1 / (r + 10).
    shares_N = 1.0 / (np.arange(items) + 10.0)
    events_E = rng.choice(items, size=int(lengths_U.sum()), p=shares_N / shares_N.sum())
    return Sequences(
        item_ids=tuple(f"item-{row:07}" for row in range(items)),
        user_ids=tuple(f"user-{row:07}" for row in range(len(lengths_U))),
        events_E=events_E.astype(np.int64),
        starts_U1=np.concatenate([[0], np.cumsum(lengths_U)]).astype(np.int64),
    )


def movielens(data: Path) -> Sequences:
    """The real histories.

    Args:
        data: The folder that holds ml-latest-small/.
    """
    dataset = datasets.load("movielens", data=data)
    return Sequences.from_interactions(dataset.interactions())


def made_up_sources(sequences: Sequences, *, width: int, names: tuple[str, ...] = SOURCES) -> Sources:
    """A vector of each item from each source; a step takes as long whatever the numbers are.

    Args:
        sequences: The histories.
        width: D0.
        names: The sources.
    """
    rng = np.random.default_rng(1)
    items = sequences.n_items
    return Sources(
        item_ids=sequences.item_ids,
        vectors={name: rng.standard_normal((items, width), dtype=np.float32) for name in names},
        present={name: np.ones(items, np.bool_) for name in names},
    )
