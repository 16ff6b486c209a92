"""Anyone's own dataset: a file of items and a file of interactions, as CSV, TSV, Parquet or JSONL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from dmesr import InvalidInput, Item, RejectedRow
from dmesr.readers import ColumnMapping, read_interactions, read_items

from dmesr_trainer.datasets.base import DatasetError, Interactions

_ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz", ".jsonl.gz")


@dataclass(frozen=True, kw_only=True)
class InteractionColumns:
    """Which column of the interactions is what."""

    user: str = "user_id"
    item: str = "item_id"
    time: str | None = "timestamp"  # numbers or ISO 8601; None where the file's order is the order of events


class FilesDataset:
    """Items and interactions out of two files.

    Args:
        data: The folder that holds `items.*` and `interactions.*`.
        items: Which column of the items is what.
        interactions: Which column of the interactions is what.
        domain: What an item is, in the words that prompts use.

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
        self._items = _one_file(data, "items")
        self._interactions = _one_file(data, "interactions")
        self._mapping = items or ColumnMapping()
        self._columns = interactions or InteractionColumns()

    def items(self) -> Iterator[Item]:
        """The items, streaming; the first bad row ends it, for a training run should not go on without knowing."""
        try:
            for item in read_items(self._items, mapping=self._mapping):
                if isinstance(item, RejectedRow):
                    raise DatasetError(f"{self._items}: {item.message}; mend that row")
                yield item
        except InvalidInput as error:
            raise DatasetError(str(error)) from error

    def interactions(self) -> Interactions:
        """All events."""
        users: list[str] = []
        items: list[str] = []
        times: list[float] = []
        columns = self._columns
        try:
            rows = read_interactions(self._interactions, user=columns.user, item=columns.item, time=columns.time)
            for row in rows:
                if isinstance(row, RejectedRow):
                    raise DatasetError(f"{self._interactions}: {row.message}; mend that row")
                users.append(row.user)
                items.append(row.item)
                times.append(0.0 if row.time is None else row.time)
        except InvalidInput as error:
            raise DatasetError(
                f"{error}; name the columns with --user-column, --item-column and --time-column"
            ) from error
        # Microseconds keep the order of fractional seconds; equal times keep the file's.
        return Interactions(
            user_ids=np.array(users, np.str_),
            item_ids=np.array(items, np.str_),
            timestamps=np.round(np.array(times) * 1e6).astype(np.int64),
        )


def _one_file(data: Path, name: str) -> Path:
    found = [data / f"{name}{ending}" for ending in _ENDINGS if (data / f"{name}{ending}").is_file()]
    if len(found) != 1:
        seen = ", ".join(path.name for path in found) or "none"
        raise DatasetError(
            f"expected one file {name} ({', '.join(_ENDINGS)}) in {data}, found {seen}; name the folder with --data"
        )
    return found[0]
