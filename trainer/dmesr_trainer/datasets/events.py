"""Events of large dumps: read once, kept as columns, cut down to the users and items with enough of them (§4.1.1).

Shapes: E events.

A dump's lines are mostly review texts; of each only who, what and when is kept, some 100 bytes in all, so memory grows
with the number of events and not with the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import polars as pl

from dmesr_trainer.datasets.base import DatasetError, Interactions

_CHUNK_EVENTS = 65_536
_COLUMNS = {"user": pl.String, "item": pl.String, "time": pl.Int64}


class Event(NamedTuple):
    """Who had to do with what, and when."""

    user: str
    item: str
    time: int  # seconds since 1970 UTC; milliseconds where the dump has them


@dataclass(frozen=True, kw_only=True)
class CoreFilter:
    """Users and items with few events are left out.

    Attributes:
        min_user_events: A user needs so many.
        min_item_events: An item needs so many.
        until_stable: Leaving out an item shortens histories, which may leave out users, and so on. True goes on until
            nothing changes, so that every user and item that is left has enough events (the one largest such set).
            False looks once, at users and items together, by the events of the whole dump: some then have fewer.
    """

    min_user_events: int = 1
    min_item_events: int = 1
    until_stable: bool = True

    def __post_init__(self) -> None:
        if self.min_user_events < 1 or self.min_item_events < 1:
            raise DatasetError(
                f"the fewest events of a user and of an item are {self.min_user_events} and {self.min_item_events}; "
                "expected at least 1, which leaves nobody out"
            )

    def __str__(self) -> str:
        if self.min_user_events == self.min_item_events == 1:
            return "nothing is filtered"
        how = "repeated until nothing changes" if self.until_stable else "once, by the events of the whole dump"
        return f"users with ≥ {self.min_user_events} events, items with ≥ {self.min_item_events}, {how}"

    def apply(self, events_E: pl.DataFrame) -> tuple[pl.DataFrame, int]:
        """The events that are left, in their order, and how many rounds that took.

        Args:
            events_E: Columns user and item.
        """
        enough = (pl.len().over("user") >= self.min_user_events) & (pl.len().over("item") >= self.min_item_events)
        rounds = 0
        while True:
            left_E = events_E.filter(enough)
            rounds += 1
            if not self.until_stable or left_E.height in (events_E.height, 0):
                return left_E, rounds
            events_E = left_E


@dataclass(frozen=True, kw_only=True)
class Period:
    """Days of which events count, both ends included, in UTC."""

    since: date | None = None
    until: date | None = None

    def __post_init__(self) -> None:
        if self.since and self.until and self.since > self.until:
            raise DatasetError(f"the period starts on {self.since} and ends before, on {self.until}; swap them")

    def __str__(self) -> str:
        return f"{self.since or 'the first day'} to {self.until or 'the last day'}"

    def seconds(self) -> tuple[float, float]:
        """The first second, and the first one after the period."""
        start = datetime.combine(self.since, time(), UTC).timestamp() if self.since else -np.inf
        end = datetime.combine(self.until + timedelta(days=1), time(), UTC).timestamp() if self.until else np.inf
        return start, end


class Counts(NamedTuple):
    """How much there is."""

    users: int
    items: int
    interactions: int


class FilteredEvents:
    """The events of a dump, read when they are first asked for.

    Equal rows (the same user, item and time) are one event. Another time is another event: people come back.

    Args:
        rows: Reads the dump.
        core: Who is left out.
        period: Which days count.
        ticks_per_second: Of the events' times.
        name: The dataset, for messages.
    """

    def __init__(
        self,
        rows: Callable[[], Iterable[Event]],
        *,
        core: CoreFilter,
        period: Period,
        ticks_per_second: int = 1,
        name: str,
    ) -> None:
        self.core, self.period = core, period
        self._rows, self._ticks, self._name = rows, ticks_per_second, name

    @cached_property
    def _read(self) -> tuple[pl.DataFrame, Counts, int, int]:
        """What is left, what there was before, the rounds of the filter, and how many rows were there twice."""
        all_E = _table(self._rows())
        rows = all_E.height
        start, end = self.period.seconds()
        all_E = all_E.unique(maintain_order=True, keep="first")
        twice = rows - all_E.height
        seconds = pl.col("time") / self._ticks
        all_E = all_E.filter((seconds >= start) & (seconds < end))
        before = _count(all_E)
        left_E, rounds = self.core.apply(all_E)
        if not left_E.height:
            raise DatasetError(
                f"{self._name}: of {before.interactions:,} events none is left ({self.core}; {self.period}); lower "
                "--min-user-events or --min-item-events, or name another period"
            )
        return left_E, before, rounds, twice

    @property
    def before(self) -> Counts:
        """What there is in the period before users and items are left out."""
        return self._read[1]

    @property
    def rounds(self) -> int:
        """Of the filter, the last of which changed nothing where it goes on until then."""
        return self._read[2]

    @property
    def twice(self) -> int:
        """Rows that were there before, equal in user, item and time."""
        return self._read[3]

    @cached_property
    def item_ids(self) -> frozenset[str]:
        """The items that are left."""
        return frozenset(self._read[0]["item"].unique().to_list())

    @cached_property
    def interactions(self) -> Interactions:
        """The events that are left, in the dump's order. Raises DatasetError."""
        left_E = self._read[0]
        return Interactions(
            user_ids=left_E["user"].to_numpy().astype(np.str_),
            item_ids=left_E["item"].to_numpy().astype(np.str_),
            timestamps=left_E["time"].to_numpy(),
        )


@runtime_checkable
class IsFiltered(Protocol):
    """A dataset that leaves out users and items with few events."""

    events: FilteredEvents


def _table(rows: Iterable[Event]) -> pl.DataFrame:
    parts = [pl.DataFrame(schema=_COLUMNS)]
    chunk: list[Event] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _CHUNK_EVENTS:
            parts.append(pl.DataFrame(chunk, schema=_COLUMNS, orient="row"))
            chunk.clear()
    parts.append(pl.DataFrame(chunk, schema=_COLUMNS, orient="row"))
    return pl.concat(parts)


def _count(events_E: pl.DataFrame) -> Counts:
    return Counts(events_E["user"].n_unique(), events_E["item"].n_unique(), events_E.height)
