"""Official dumps, one object a line: JSON or the Python dicts of older releases, gzipped or plain, streaming.

The rule for bad lines: a line that cannot be used is left out and told with its number. A file is refused as soon as
more than ten lines and more than one in a hundred of those read so far are bad (then it is another kind of file), when
none can be used, and when it breaks off within a gzip stream: what is left would be another dataset.
"""

from __future__ import annotations

import ast
import gzip
import json
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any, Generic, TypeVar, cast

from dmesr import RejectedRow
from dmesr.readers import UNREADABLE_ROW

from dmesr_trainer.datasets.base import DatasetError

_GZIP = b"\x1f\x8b"
_LINE_BYTES = 16 * 1024 * 1024  # a longer line is not one row of such a dump
_TOLERATED = 10  # bad lines, whatever their share
_TOLERATED_SHARE = 0.01  # of the lines so far
_KEPT_PROBLEMS = 100


class UnusableLineError(Exception):
    """A line is an object, but lacks what is needed. The message says what."""


T = TypeVar("T")


class Lines(Generic[T]):
    """What the lines of one file say; each iteration reads the file anew.

    Args:
        path: The file; whether it is gzipped is seen by its first bytes, not by its name.
        what: What its lines are, for messages: "Amazon reviews".
        read: Makes an object what is wanted, or raises `UnusableLineError`.

    Attributes:
        path: The file.
        rejected: How many lines the last iteration left out.
        problems: The first of them.
    """

    def __init__(self, path: Path, *, what: str, read: Callable[[dict[str, Any]], T]) -> None:
        self.path = path
        self.rejected = 0
        self.problems: list[RejectedRow] = []
        self._what = what
        self._read = read
        self._line = 0

    def __iter__(self) -> Iterator[T | RejectedRow]:
        """The file's lines in their order; one that cannot be used as what is wrong with it.

        Raises:
            DatasetError: The file is missing, breaks off, or is of another kind.
        """
        self.rejected, self._line = 0, 0
        self.problems.clear()
        used = 0
        for line in self._lines():
            self._line += 1
            if not line.strip():
                continue
            try:
                found: T | RejectedRow = self._read(_value(line))
                used += 1
            except UnusableLineError as problem:
                found = self._leave_out(str(problem))
            yield found
        if not used:
            first = f": {self.problems[0].message}" if self.problems else ""
            raise DatasetError(f"{self.path} holds no {self._what} that can be used{first}")

    def usable(self) -> Iterator[T]:
        """The lines that can be used; the others are in `rejected` and `problems`. Raises DatasetError."""
        for found in self:
            if not isinstance(found, RejectedRow):
                yield found

    def _leave_out(self, why: str) -> RejectedRow:
        self.rejected += 1
        where = {"file": str(self.path), "line": str(self._line)}
        problem = RejectedRow("", UNREADABLE_ROW, f"line {self._line} of {self.path.name}: {why}", where)
        if len(self.problems) < _KEPT_PROBLEMS:
            self.problems.append(problem)
        if self.rejected > max(_TOLERATED, _TOLERATED_SHARE * self._line):
            raise DatasetError(
                f"{self.path} does not look like {self._what}: {self.rejected} of its first {self._line} lines cannot "
                f"be used; {self.problems[0].message}"
            )
        return problem

    def _lines(self) -> Iterator[bytes]:
        try:
            with closing(_opened(self.path)) as file:
                while line := file.readline(_LINE_BYTES):
                    yield line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DatasetError(
                f"{self.path} breaks off or is damaged after line {self._line} ({error}); download it again: what can "
                "be read of it would be another dataset"
            ) from error
        except OSError as error:
            raise DatasetError(f"cannot read {self.path}: {error.strerror or error}") from error


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP
    return cast(IO[bytes], gzip.open(path, "rb")) if packed else path.open("rb")


def _value(line: bytes) -> dict[str, Any]:
    if len(line) == _LINE_BYTES and not line.endswith(b"\n"):
        raise UnusableLineError(f"it is longer than {_LINE_BYTES:,} bytes")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        value = _python_dict(line, why=error)
    if not isinstance(value, dict):
        raise UnusableLineError(f"expected an object, got a {type(value).__name__}")
    return value


def _python_dict(line: bytes, *, why: Exception) -> object:
    if not line.lstrip().startswith((b"{'", b'{"', b"{u'")):
        raise UnusableLineError(f"it is neither JSON ({why}) nor a Python dict") from why
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python means to forbid
            return ast.literal_eval(line.decode().strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise UnusableLineError(f"it is no JSON: {why}") from error


def text(value: object) -> str:
    """Text without what cannot travel: lone surrogates, and spaces around it. Anything but text is empty."""
    if not isinstance(value, str):
        return ""
    if not value.isascii():
        value = value.encode("utf-8", "replace").decode()
    return value.strip()
