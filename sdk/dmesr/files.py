"""Rows of CSV, TSV, Parquet and JSONL files, at constant memory, whatever single rows look like."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TextIO

from dmesr.errors import InvalidInput
from dmesr.rows import RejectedRow

Format = Literal["csv", "tsv", "parquet", "jsonl"]

#: The reason of a row that is no row: broken quotes, a line that is no JSON object, bytes that are no UTF-8.
UNREADABLE_ROW = "UNREADABLE_ROW"

_FORMATS: Mapping[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
_DELIMITERS = {"csv": ",", "tsv": "\t"}
_PARQUET_ROWS = 1_000  # held at a time
_LINE_CHARACTERS = 16 * 1024 * 1024  # a longer line is not one row of a catalogue


@dataclass(frozen=True)
class Row:
    """One row of a file."""

    number: int  # counted from 1, without the header
    values: Mapping[str, object]  # by column; None where there is no value


def format_of(path: Path) -> Format:
    """The format that the file's name tells.

    Raises:
        InvalidInput: The name tells none.
    """
    try:
        return _FORMATS[path.suffix.lower()]
    except KeyError:
        raise InvalidInput(f"{path}: cannot tell the format from the name; expected {', '.join(_FORMATS)}") from None


def read_rows(
    path: Path | str,
    *,
    needed: Sequence[str] = (),
    optional: Sequence[str] = (),
    only_needed: bool = False,
    format: Format | None = None,
) -> Iterator[Row | RejectedRow]:
    """Iterates the rows of a file. A bad row comes out as :class:`dmesr.RejectedRow` and the file goes on.

    Args:
        path: The file, UTF-8 with or without a byte order mark.
        needed: Columns that the file must have. A JSON object may lack them; its value is then None.
        optional: Columns that are read too, where the file has them.
        only_needed: Read no other columns, where the format allows that.
        format: By the file's name when None.

    Raises:
        InvalidInput: The file cannot be read at all, or lacks a column. Raised when the iteration starts.
    """
    file = Path(path)
    kind = format or format_of(file)
    if kind == "parquet":
        yield from _parquet(file, needed, optional, only_needed)
    elif kind == "jsonl":
        yield from _jsonl(file, needed)
    else:
        yield from _delimited(file, needed, _DELIMITERS[kind])


@contextmanager
def _open(path: Path) -> Iterator[TextIO]:
    try:
        # Bytes that are no UTF-8 become lone surrogates, so that only their own row is lost.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield file
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror or error}") from error


def rejected(
    path: Path | str, number: int, reason: str, message: str, *, item_id: str = "", **metadata: Any
) -> RejectedRow:
    """A row of a file that cannot be used; its message starts with where it stands."""
    where = {"file": str(path), "row": str(number), **{key: str(value) for key, value in metadata.items()}}
    return RejectedRow(item_id, reason, f"row {number} of {Path(path).name}: {message}", where)


def _check_columns(path: Path, columns: Sequence[str], needed: Sequence[str]) -> None:
    if missing := [name for name in needed if name not in columns]:
        raise InvalidInput(
            f"{path} has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, columns))}"
        )


def _is_text(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


class _Lines:
    """The lines of a file for a CSV reader, some of which may be given back."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._again: list[str] = []
        self._row: list[str] = []
        self.first = 1  # the line, counted from 1, at which the row under way starts
        self.last = 0  # the line that was read last

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else self._file.readline(_LINE_CHARACTERS)
        if not line:
            raise StopIteration
        self._row.append(line)
        self.last += 1
        return line

    def start_row(self) -> None:
        self._row.clear()
        self.first = self.last + 1

    def give_back(self) -> None:
        """Lets all but the first line of the row under way be read once more."""
        self._again.extend(reversed(self._row[1:]))
        self.last = self.first

    @property
    def place(self) -> str:
        return f"line {self.first}" if self.last <= self.first else f"lines {self.first} to {self.last}"


def _delimited(path: Path, needed: Sequence[str], delimiter: str) -> Iterator[Row | RejectedRow]:
    with _open(path) as file:
        lines = _Lines(file)
        # Strict: a stray quote costs its own row, instead of merging rows in silence.
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header = _header(path, reader)
        _check_columns(path, header, needed)
        number = 0
        while True:
            lines.start_row()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                number += 1
                yield rejected(path, number, UNREADABLE_ROW, f"{_csv_problem(error)} ({lines.place})", line=lines.first)
                if _never_closed(error):  # then what follows was no part of this row
                    lines.give_back()
                continue
            if not cells:  # a blank line
                continue
            number += 1
            problem = None
            if len(cells) != len(header):
                problem = f"it has {len(cells)} cells, the header {len(header)}; quote a cell that holds {delimiter!r}"
            elif not all(map(_is_text, cells)):
                problem = "it is not UTF-8"
            if problem is not None:
                yield rejected(path, number, UNREADABLE_ROW, f"{problem} ({lines.place})", line=lines.first)
            else:
                yield Row(number, {name: cell or None for name, cell in zip(header, cells, strict=True)})


def _header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise InvalidInput(f"{path}: the header cannot be read: {error}") from error
    if not header:
        raise InvalidInput(f"{path} has no header in its first line; expected the names of the columns")
    if not all(map(_is_text, header)):
        raise InvalidInput(f"{path} is not UTF-8; save it as UTF-8")
    if len(set(header)) < len(header):
        twice = sorted({name for name in header if header.count(name) > 1})
        raise InvalidInput(f"{path} has the column {', '.join(map(repr, twice))} twice; rename one")
    return header


def _never_closed(error: csv.Error) -> bool:
    return "unexpected end" in str(error)


def _csv_problem(error: csv.Error) -> str:
    if "field limit" in str(error):
        limit = csv.field_size_limit()
        return f"a cell is longer than {limit:,} characters; shorten it, or close the quote that it starts with"
    if _never_closed(error):
        return "a quote is opened and never closed"
    return f"{error}; double the quotes within a quoted cell"


def _jsonl(path: Path, needed: Sequence[str]) -> Iterator[Row | RejectedRow]:
    absent = dict.fromkeys(needed)
    with _open(path) as file:
        number = 0
        while line := file.readline(_LINE_CHARACTERS):
            if not line.strip():
                continue
            number += 1
            if len(line) == _LINE_CHARACTERS and not line.endswith("\n"):
                while line and not line.endswith("\n"):
                    line = file.readline(_LINE_CHARACTERS)
                yield rejected(path, number, UNREADABLE_ROW, f"it is longer than {_LINE_CHARACTERS:,} characters")
                continue
            try:
                value = json.loads(line, parse_constant=lambda _: None)  # NaN and infinity are no values
            except (ValueError, RecursionError) as error:
                yield rejected(path, number, UNREADABLE_ROW, f"it is no JSON: {error}")
                continue
            if not isinstance(value, dict):
                kind = type(value).__name__
                yield rejected(path, number, UNREADABLE_ROW, f"expected a JSON object, got a {kind}", type=kind)
            elif not _is_text(line):
                yield rejected(path, number, UNREADABLE_ROW, "it is not UTF-8")
            else:
                yield Row(number, {**absent, **value})


def _parquet(
    path: Path, needed: Sequence[str], optional: Sequence[str], only_needed: bool
) -> Iterator[Row | RejectedRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Pages are read as they are needed: a row group may be as large as the file.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1024 * 1024) as file:
            columns = file.schema_arrow.names
            _check_columns(path, columns, needed)
            chosen = [*needed, *(name for name in optional if name in columns and name not in needed)]
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=chosen if only_needed else None):
                values = {name: batch.column(name).to_pylist() for name in batch.schema.names}
                for position in range(batch.num_rows):
                    number += 1
                    yield Row(number, {name: _plain(column[position]) for name, column in values.items()})
    except (pa.ArrowException, OSError) as error:
        raise InvalidInput(f"cannot read {path}: {error}") from error


def _plain(value: object) -> object:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, list):
        return [_plain(element) for element in value]
    return value
