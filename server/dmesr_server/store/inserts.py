"""Who puts rows into a table.

Appending rows takes half of what merging them does, but lance appends a key that is there already a second time. So
only a writer appends that is alone and sees that nobody else has put a row in since it looked. Merges may meet: a
process that is stopped in the middle of one keeps nobody from writing.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import ServiceError
from .database import translated
from .schemas import TableState

_APPEND_WAITS_SECONDS = 0.5  # about as long as a few appends of others take
_MERGE_WAITS_SECONDS = 60.0
_KEPT_COMMITS = 8  # of this process: the next group of a stream is looked at while the one before is written


@dataclass(frozen=True)
class _Commit:
    after: TableState
    keys: frozenset[str]


class Inserts:
    """The commits of this process that may have put rows into one table. Not for several threads at once."""

    def __init__(self) -> None:
        self._commits: dict[TableState, _Commit] = {}

    def note(self, keys: list[str], *, before: TableState, after: TableState) -> None:
        """Remembers a commit.

        Args:
            keys: What it may have put in.
            before: A state from which on nobody else put rows in until it was done.
            after: The state that it made.
        """
        if after == before:
            return
        self._commits[before] = _Commit(after, frozenset(keys))
        while len(self._commits) > _KEPT_COMMITS:
            del self._commits[next(iter(self._commits))]

    def absent(self, keys: list[str], *, since: TableState, now: TableState) -> bool:
        """Whether keys that were absent once still are: nothing but commits of this process, of other keys, came since.

        A compaction that came in between makes it say no, too, which costs a merge.
        """
        state = since
        while state != now:
            commit = self._commits.get(state)
            if commit is None or not commit.keys.isdisjoint(keys):
                return False
            state = commit.after
        return True


@contextmanager
def among_merges(file: Path) -> Iterator[None]:
    """While it lasts nobody appends; others may merge, which lance keeps apart by itself.

    Raises:
        ServiceError: STORE_FULL or STORE_UNAVAILABLE: the file cannot be had.
    """
    with _held(file, fcntl.LOCK_SH, seconds=_MERGE_WAITS_SECONDS) as held:
        if not held:
            raise ServiceError(
                "STORE_UNAVAILABLE",
                f"a process has been appending under {file} for more than {_MERGE_WAITS_SECONDS:.0f} s, so it was "
                "stopped or hangs: end it or let it go on, then send this again",
                file=str(file),
            )
        yield


@contextmanager
def alone(file: Path) -> Iterator[bool]:
    """While it lasts nobody else puts rows in. False where others would have to be waited for too long.

    Raises:
        ServiceError: STORE_FULL or STORE_UNAVAILABLE: the file cannot be made.
    """
    with _held(file, fcntl.LOCK_EX, seconds=_APPEND_WAITS_SECONDS) as held:
        yield held


@contextmanager
def _held(file: Path, kind: int, *, seconds: float) -> Iterator[bool]:
    """The kernel gives a file back however the process ends."""
    with translated(f"taking {file}"):
        descriptor = _taken(file, kind, deadline=time.monotonic() + seconds)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _taken(file: Path, kind: int, *, deadline: float) -> int | None:
    pause = 0.001  # s
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        taken = False
        try:
            # Whoever drops a catalog takes its files along, and the next one to come makes another of the name.
            taken = _tried(descriptor, kind) and _is_at(descriptor, file)
        finally:
            if not taken:
                os.close(descriptor)
        if taken:
            return descriptor
        if time.monotonic() > deadline:
            return None
        time.sleep(pause)
        pause = min(2 * pause, 0.02)


def _tried(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
