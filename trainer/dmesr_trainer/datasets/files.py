"""Anyone's own dataset: a file of items and a file of interactions, as CSV, TSV, Parquet or JSONL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from dmesr import InvalidInput, Item, RejectedRow
from dmesr.readers import ColumnMapping, Row, read_interactions, read_items, read_rows
from numpy.typing import NDArray

from dmesr_trainer.datasets.base import DatasetError, Interactions

_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".pq")
_USER_NAMES = ("user_id", "user", "userId")
_ITEM_NAMES = ("item_id", "item", "itemId")
_TIME_NAMES = ("timestamp", "time", "position")
_KEPT_PROBLEMS = 100


@dataclass(frozen=True, kw_only=True)
class InteractionColumns:
    """Which column of the interactions is what. Of what is None the usual names are tried."""

    user: str | None = None
    item: str | None = None
    time: str | None = None  # numbers or ISO 8601; "", or none of the usual names: the file's order


class FilesDataset:
    """Items and interactions out of two files.

    Rows that cannot be used are left out and told: of the items they come out as `dmesr.RejectedRow`, which
    `client.items.upsert` counts; of the interactions they are counted in `rejected`.

    Args:
        data: The folder that holds `items.*` and `interactions.*`.
        items: Which column of the items is what.
        interactions: Which column of the interactions is what.
        domain: What an item is, in the words that prompts use.

    Attributes:
        rejected: How many rows the last `interactions()` left out.
        problems: The first of them, with reasons.

    Raises:
        DatasetError: A file is missing, or there is more than one of that name.
    """

    name = "files"
    planted = False

    def __init__(
        self,
        data: Path,
        *,
        items: ColumnMapping | None = None,
        interactions: InteractionColumns | None = None,
        domain: str = "item",
    ) -> None:
        self.domain = domain
        self.rejected = 0
        self.problems: tuple[RejectedRow, ...] = ()
        self._items = _one_file(data, "items")
        self._interactions = _one_file(data, "interactions")
        self._mapping = items or ColumnMapping()
        self._columns = interactions or InteractionColumns()

    def items(self) -> Iterator[Item | RejectedRow]:
        """The items, streaming."""
        try:
            yield from read_items(self._items, mapping=self._mapping)
        except InvalidInput as error:
            raise DatasetError(f"{error}; name the columns with --id-column and --picture-column") from error

    def interactions(self) -> Interactions:
        """All events that can be used, in the file's order."""
        users: list[str] = []
        items: list[str] = []
        times: list[float] = []
        problems: list[RejectedRow] = []
        self.rejected = 0
        try:
            user, item, time = self._named()
            for row in read_interactions(self._interactions, user=user, item=item, time=time):
                if isinstance(row, RejectedRow):
                    self.rejected += 1
                    if len(problems) < _KEPT_PROBLEMS:
                        problems.append(row)
                    continue
                users.append(row.user)
                items.append(row.item)
                times.append(float(len(times)) if row.time is None else row.time)
        except InvalidInput as error:
            raise DatasetError(
                f"{error}; name the columns with --user-column, --item-column and --time-column"
            ) from error
        self.problems = tuple(problems)
        if not users:
            why = f": {problems[0].message}" if problems else ""
            raise DatasetError(f"{self._interactions} has no interaction that can be used{why}")
        return Interactions(
            user_ids=np.array(users, np.str_), item_ids=np.array(items, np.str_), timestamps=_whole(np.array(times))
        )

    def _named(self) -> tuple[str, str, str | None]:
        """The columns of user, item and time, as the caller or else the file itself names them."""
        there = next((tuple(row.values) for row in read_rows(self._interactions) if isinstance(row, Row)), ())
        columns = self._columns
        time = _usual(_TIME_NAMES, there) if columns.time is None else columns.time or None
        # Where no usual name is there, the first one goes on: the reader's complaint tells what the file has.
        user = columns.user or _usual(_USER_NAMES, there) or _USER_NAMES[0]
        return user, columns.item or _usual(_ITEM_NAMES, there) or _ITEM_NAMES[0], time


def _usual(names: Sequence[str], there: Sequence[str]) -> str | None:
    return next((name for name in names if name in there), None)


def _one_file(data: Path, name: str) -> Path:
    found = [data / f"{name}{ending}" for ending in _ENDINGS if (data / f"{name}{ending}").is_file()]
    if len(found) != 1:
        seen = ", ".join(path.name for path in found) or "none"
        raise DatasetError(
            f"expected one file {name} ({', '.join(_ENDINGS)}) in {data}, found {seen}; name the folder with --data"
        )
    return found[0]


def _whole(times_E: NDArray[np.float64]) -> NDArray[np.int64]:
    """Times as whole numbers: as they are, or their ranks where they have fractions or are too large."""
    if np.array_equal(times_E, np.trunc(times_E)) and np.abs(times_E).max() < 2**62:
        return times_E.astype(np.int64)
    return np.unique(times_E, return_inverse=True)[1].astype(np.int64)
