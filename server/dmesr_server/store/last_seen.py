"""What a table was like when it was last looked at, for as long as nobody has written to it.

To ask LanceDB takes 0.6 ms, and each search and each lookup begins with it. Every version of a table is a file of one
folder, put there when all else of it is written: as long as the folder stands as it did, so does the table.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from .schemas import TableState, incarnation

Seen = tuple[TableState, pa.Schema]

#: A folder may change twice within one tick of the clock that stamps it, so one that has just changed tells nothing.
_SETTLED_NS = 100_000_000


def asked(handle: Any) -> Seen:
    """Asks LanceDB which table of its name it is and its newest version, and its columns."""
    schema = handle.schema
    return TableState(incarnation(schema), int(handle.version)), schema


class LastSeen:
    """What was seen of one table. Safe for any thread."""

    def __init__(self, folder: Path | None):
        """Nothing has been seen yet.

        Args:
            folder: The folder of the table; None where others may change it by means that its stamp does not tell.
        """
        self._versions = None if folder is None else folder / "_versions"
        self._known: tuple[tuple[int, int], Seen] | None = None

    def get(self, ask: Callable[[], Seen]) -> Seen:
        """What the table is like.

        Args:
            ask: Finds that out, when it may have changed.
        """
        stamp = self._stamp()
        known = self._known
        if known is not None and known[0] == stamp:
            return known[1]
        seen = ask()
        if stamp is not None:
            self._known = (stamp, seen)
        return seen

    def _stamp(self) -> tuple[int, int] | None:
        """Which folder it is and when it changed last; None where that tells nothing."""
        if self._versions is None:
            return None
        try:
            found = self._versions.stat()
        except OSError:
            return None
        age_ns = time.time_ns() - found.st_mtime_ns
        return (found.st_ino, found.st_mtime_ns) if age_ns > _SETTLED_NS else None
