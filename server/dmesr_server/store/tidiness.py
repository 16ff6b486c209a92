"""What house-keeping decides by: in how many pieces a table is, and what of it is old."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from .indexes import coverage
from .tags import tags_of

SMALL_PIECES = 20  # from which compaction may pay
PIECES_ANYWAY = 300  # each write adds a piece, and every commit lists all of them
#: Compaction rewrites every piece that is not full. Waiting until the small ones hold this share of the rows keeps the
#: bytes rewritten within a small multiple of the bytes written, however many small writes there are.
SMALL_SHARE = 0.25
#: Each piece costs every later write 0.1 ms: so small a table is rewritten after so many writes, which is soon cheaper.
SMALL_BYTES, SMALL_WRITES = 16 << 20, 50
#: From which a writer looks whether it has to tidy up itself.
WRITES_BEFORE_LOOK, ROWS_BEFORE_LOOK = 20, 100_000
WRITES_ANYWAY = 500

#: From which the key's index is made anew: a look-up reads all rows that it does not cover, with all their columns.
UNINDEXED_ROWS = 5_000

HOLDING = "copying-"
_LONGEST_COPY_SECONDS = 86_400.0


@dataclass(frozen=True)
class Tidiness:
    """A table's files as they are now.

    Attributes:
        version: Its newest version.
        rows: Its rows.
        fragments: The pieces that they are in.
        largest: Rows of the largest piece.
        versions: That can still be read.
        oldest_seconds: Age of the oldest of them; 0 where the store is remote.
        pinned: Versions that are pinned.
        unindexed: Rows that the key's index does not cover.
    """

    version: int
    rows: int
    fragments: int
    largest: int
    versions: int
    oldest_seconds: float
    pinned: int
    unindexed: int = 0

    @property
    def index_lags(self) -> bool:
        """Whether the key's index is to be brought up to date, where no compaction does that."""
        return self.unindexed >= UNINDEXED_ROWS

    @property
    def in_pieces(self) -> bool:
        """Whether compaction is due."""
        grown = self.rows - self.largest >= SMALL_SHARE * self.rows
        return self.fragments > PIECES_ANYWAY or (self.fragments > SMALL_PIECES and grown)


class Untidied:
    """What was written to a table since it was tidied, and whether its writer has to see to that."""

    def __init__(self) -> None:
        self.writes = 0
        self.rows = 0

    def wrote(self, rows: int) -> None:
        """Counts a commit."""
        self.writes += 1
        self.rows += rows

    def due(self, *, count: Callable[[], int] | None, is_small: Callable[[], bool]) -> bool:
        """Whether it is time.

        Args:
            count: Tells the rows of the table; None where somebody looks after it in the background.
            is_small: Tells whether it is small.
        """
        if self.writes < WRITES_BEFORE_LOOK and self.rows < ROWS_BEFORE_LOOK:
            return False
        if count is not None and self.rows >= SMALL_SHARE * count():
            return True
        return self.writes >= WRITES_ANYWAY or (self.writes % SMALL_WRITES == 0 and is_small())


def held_bytes(handle: Any) -> int:
    """About what the rows of the newest version take."""
    return int(handle.stats()["total_bytes"])


def files_of(folder: Path) -> Iterator[Path]:
    """All files under a folder; folders that house-keeping takes away meanwhile are passed over."""
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in names)


def tidiness(handle: Any, *, folder: Path | None, key: str | None = None) -> Tidiness:
    """Looks at a LanceDB table.

    Args:
        handle: The table.
        folder: Where its files are; None where they are remote.
        key: The column of its key, whose index is looked at too.
    """
    index = None if key is None else coverage(handle, key)
    pieces = handle.stats()["fragment_stats"]
    if folder is None:
        versions, oldest = len(handle.list_versions()), 0.0
    else:
        # The names alone: reading each version's manifest takes seconds where there are thousands.
        ages = [_age(file) for file in (folder / "_versions").glob("*.manifest")]
        versions, oldest = len(ages), max(ages, default=0.0)
    return Tidiness(
        version=int(handle.version),
        rows=int(handle.count_rows()),
        fragments=int(pieces["num_fragments"]),
        largest=int(pieces["lengths"]["max"]),
        versions=versions,
        oldest_seconds=oldest,
        pinned=len(tags_of(handle)),
        unindexed=0 if index is None else index.uncovered,
    )


def holding_tag() -> str:
    """A tag for as long as a version is being copied. No pin's tag looks like it."""
    return f"{HOLDING}{int(time.time())}-{uuid.uuid4().hex}"


def is_abandoned(tag: str) -> bool:
    """Whether a process that was copying has died and left its tag behind."""
    since = tag.removeprefix(HOLDING).partition("-")[0]
    return tag.startswith(HOLDING) and since.isdigit() and time.time() - int(since) > _LONGEST_COPY_SECONDS


def tidy(handle: Any, *, keep: timedelta) -> None:
    """Compacts a LanceDB table, brings its indexes up to date and drops old versions, pinned ones apart.

    Args:
        handle: The table.
        keep: How old a version must be to go.
    """
    for tag in tags_of(handle):
        if is_abandoned(tag):
            handle.tags.delete(tag)
    tagged = set(tags_of(handle).values())
    if tagged:
        # Lance gives up cleaning, and the indexes after it, when a tagged version is old enough to be cleaned. So
        # nothing is cleaned that is as old as the oldest pin. Compaction comes first and takes its time.
        times = [entry["timestamp"] for entry in handle.list_versions() if int(entry["version"]) in tagged]
        oldest: datetime = min(times)
        keep = max(keep, datetime.now(oldest.tzinfo) - oldest + timedelta(hours=1))
    handle.optimize(cleanup_older_than=keep)


def _age(file: Path) -> float:
    try:
        return time.time() - file.stat().st_mtime
    except FileNotFoundError:  # cleaned up meanwhile
        return 0.0
