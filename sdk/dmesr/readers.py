"""Items and interactions out of files: CSV, TSV, Parquet and JSONL, streaming, at constant memory.

    mapping = dmesr.readers.ColumnMapping(item_id="movieId", picture="poster", list_separator="|")
    client.items.upsert(dmesr.readers.read_items("films.csv", mapping=mapping))

A bad row comes out as :class:`dmesr.RejectedRow`, with the row's number in its message and metadata; `upsert` passes
it on into its summary. Its reason is one of the service's own, or `UNREADABLE_ROW`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from dmesr.errors import InvalidInput
from dmesr.files import UNREADABLE_ROW, Format, Row, read_rows, rejected
from dmesr.item import Item, Picture, Scalar
from dmesr.rows import Problem, RejectedRow

__all__ = [
    "UNREADABLE_ROW",
    "ColumnMapping",
    "Format",
    "Interaction",
    "Row",
    "read_interactions",
    "read_items",
    "read_rows",
]

_PICTURE_COLUMN = "picture"


@dataclass(frozen=True, kw_only=True)
class ColumnMapping:
    """Which column is what."""

    item_id: str = "item_id"
    attributes: Mapping[str, str] | None = None  # attribute name to column; None takes every other column
    # File paths, URIs that the server reads, "sha256:HEX", or the pictures' bytes. None takes the column "picture",
    # where there is one and attributes are not named.
    picture: str | None = None
    picture_root: Path | None = None  # where the files lie, all of them below it; the file's own folder when None
    list_separator: str | None = None  # cuts text into several values, for instance "|"

    def __post_init__(self) -> None:
        if self.list_separator == "":
            raise InvalidInput("ColumnMapping.list_separator is empty; pass None to cut nothing")

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that are named."""
        named = [self.item_id, *([self.picture] if self.picture else []), *(self.attributes or {}).values()]
        return tuple(dict.fromkeys(named))

    @property
    def picture_column(self) -> str | None:
        """The column that is read as the picture, if a row has it."""
        return _PICTURE_COLUMN if self.picture is None and self.attributes is None else self.picture


class Interaction(NamedTuple):
    """One user had to do with one item."""

    user: str
    item: str
    time: float | None  # seconds since 1970 UTC, or whatever numbers the file orders events by


class _RowError(Exception):
    """What is wrong with a row."""

    def __init__(self, reason: str, message: str, **metadata: Any) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = metadata


def read_items(
    path: Path | str, *, mapping: ColumnMapping | None = None, format: Format | None = None
) -> Iterator[Item | RejectedRow]:
    """Iterates the items of a file.

    Args:
        path: The file.
        mapping: Which column is what.
        format: By the file's name when None.

    Raises:
        InvalidInput: The file cannot be read, or lacks a column. Raised when the iteration starts.
    """
    columns = mapping or ColumnMapping()
    root = columns.picture_root or Path(path).parent
    only = columns.attributes is not None
    for row in read_rows(path, needed=columns.needed, only_needed=only, format=format):
        if isinstance(row, RejectedRow):
            yield row
            continue
        item_id = ""
        try:
            item_id = _id(row.values.get(columns.item_id), columns.item_id)
            yield Item(
                item_id, attributes=_attributes(row.values, columns), picture=_picture(row.values, columns, root)
            )
        except _RowError as problem:
            yield rejected(path, row.number, problem.reason, problem.message, item_id=item_id, **problem.metadata)


def read_interactions(
    path: Path | str, *, user: str, item: str, time: str | None = None, format: Format | None = None
) -> Iterator[Interaction | RejectedRow]:
    """Iterates the interactions of a file, in the file's order.

    Args:
        path: The file.
        user: The column with user ids.
        item: The column with item ids.
        time: The column with numbers or ISO 8601 times; None where the file's order is all there is.
        format: By the file's name when None.

    Raises:
        InvalidInput: The file cannot be read, or lacks a column. Raised when the iteration starts.
    """
    needed = (user, item, *((time,) if time is not None else ()))
    for row in read_rows(path, needed=needed, only_needed=True, format=format):
        if isinstance(row, RejectedRow):
            yield row
            continue
        try:
            when = None if time is None else _moment(row.values.get(time), time)
            yield Interaction(_id(row.values.get(user), user), _id(row.values.get(item), item), when)
        except _RowError as problem:
            yield rejected(path, row.number, problem.reason, problem.message, **problem.metadata)


def _id(value: object, column: str) -> str:
    match value:
        case None:
            text = ""
        case bool() | list() | dict() | bytes():
            raise _RowError("INVALID_ITEM_ID", f"{column!r} is {value!r:.60}; expected text or a number", column=column)
        case float() if value.is_integer():  # a column of integers with gaps, as pandas writes it
            text = str(int(value))
        case _:
            text = str(value)
    if not text.strip() or text == "nan":
        raise _RowError("INVALID_ITEM_ID", f"{column!r} is empty; every row needs an id", column=column)
    return text


def _attributes(values: Mapping[str, object], columns: ColumnMapping) -> dict[str, Scalar | list[Scalar]]:
    names = columns.attributes
    if names is None:
        names = {name: name for name in values if name not in (columns.item_id, columns.picture_column)}
    attributes: dict[str, Scalar | list[Scalar]] = {}
    for name, column in names.items():
        value = values.get(column)
        found: list[Scalar] = []
        for element in value if isinstance(value, list) else [value]:
            if isinstance(element, str) and columns.list_separator is not None:
                found.extend(part.strip() for part in element.split(columns.list_separator))
            elif isinstance(element, str | int | float):
                if not (isinstance(element, float) and math.isnan(element)):
                    found.append(element)
            elif element is not None:
                raise _RowError(
                    "INVALID_ATTRIBUTE",
                    f"{column!r} holds a {type(element).__name__}; expected text, numbers or a list of these: "
                    "name the columns to take as attributes",
                    column=column,
                )
        found = [element for element in found if element != ""]
        if found:
            attributes[name] = found if isinstance(value, list) or len(found) > 1 else found[0]
    return attributes


def _picture(values: Mapping[str, object], columns: ColumnMapping, root: Path) -> Picture:
    column = columns.picture_column
    value = values.get(column) if column is not None else None
    if isinstance(value, dict):  # as the image columns of the Hugging Face hub are stored
        value = value.get("bytes") or value.get("path")
    match value:
        case None | "":
            return None
        case bytes():
            return value
        case str() if value.startswith("sha256:") or "://" in value:
            return value
        case str():
            return _below(root, value)
        case _:
            kind = type(value).__name__
            return Problem(
                "PICTURE_UNREADABLE",
                f"{column!r} is a {kind}; expected a path, a URI or the picture's bytes",
                {"column": str(column), "type": kind},
            )


def _below(root: Path, path: str) -> Path | Problem:
    """The file, unless the path leads out of the root: a catalogue from elsewhere should not pick files to send."""
    # Not resolve(), which follows links: those inside the folder were put there by its owner.
    if Path(os.path.abspath(root / path)).is_relative_to(os.path.abspath(root)):  # noqa: PTH100
        return root / path
    return Problem(
        "PICTURE_URI_NOT_ALLOWED",
        f"the picture {path[:200]!r} does not lie below {root}; name the folder that holds all pictures",
        {"path": path[:200], "root": str(root)},
    )


def _moment(value: object, column: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if isinstance(value, str):
        try:
            number = float(value)
            if math.isfinite(number):
                return number
        except ValueError:
            try:
                moment = datetime.fromisoformat(value)
                return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
            except ValueError:
                pass
    raise _RowError(
        "INVALID_FIELD", f"{column!r} is {value!r:.60}; expected a number or an ISO 8601 time", column=column
    )
