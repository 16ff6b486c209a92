"""What every dataset gives: items for the catalogue, and who interacted with what, when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from dmesr import Item, RejectedRow
from numpy.typing import NDArray


class DatasetError(ValueError):
    """The dataset's files are missing or not what they should be. The message names the file and what to do."""


@dataclass(frozen=True)
class Interactions:
    """Events, one a row, in the order of the files (which breaks ties between equal timestamps, everywhere the same).

    Attributes:
        user_ids: str [E].
        item_ids: str [E].
        timestamps: int64 [E], any unit that grows with time.
    """

    user_ids: NDArray[np.str_]
    item_ids: NDArray[np.str_]
    timestamps: NDArray[np.int64]

    def __post_init__(self) -> None:
        assert self.user_ids.shape == self.item_ids.shape == self.timestamps.shape

    def __len__(self) -> int:
        return len(self.user_ids)


@dataclass(frozen=True)
class PictureUrl:
    """Where an item's picture is."""

    item_id: str
    url: str


class Dataset(Protocol):
    """A catalogue and its interactions."""

    @property
    def name(self) -> str:
        """The dataset's name, for instance "movielens"."""

    @property
    def domain(self) -> str:
        """What an item is, in the words that prompts use: "film"."""

    @property
    def planted(self) -> bool:
        """True when users' tastes were made up: results check the wiring and are no evidence."""

    def items(self) -> Iterator[Item | RejectedRow]:
        """The items with attributes and pictures, streaming; rows that cannot be used as what is wrong with them.

        `client.items.upsert` takes both. Raises DatasetError.
        """

    def interactions(self) -> Interactions:
        """All events. Raises DatasetError."""


@runtime_checkable
class HasPictureUrls(Protocol):
    """A dataset that tells where pictures are instead of holding them."""

    def picture_urls(self) -> Iterator[PictureUrl]:
        """Of the items that have one. Raises DatasetError."""


@runtime_checkable
class LeavesOut(Protocol):
    """A dataset that leaves out rows that cannot be used, and tells."""

    @property
    def rejected(self) -> int:
        """How many rows the last reading of interactions left out."""

    @property
    def problems(self) -> tuple[RejectedRow, ...]:
        """The first of them, with reasons."""
