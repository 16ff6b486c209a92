"""Copies of tables: one version of a table as files, while others write to it; and what a table's content hashes to."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import ServiceError
from .database import Database, new_session, translated
from .fingerprints import update_with_texts
from .snapshots import Snapshot
from .tables import Table
from .tidiness import HOLDING, files_of, holding_tag

_NEWEST = 2**64 - 1  # lance names a version's file after its distance from here, so that the newest comes first


@dataclass(frozen=True)
class TableContent:
    """What a table holds.

    Attributes:
        name: The table.
        rows: Its rows.
        digest: sha256 hex over its rows in order of their key, vectors and pictures' bytes left out: those are held by
            their hash, which is a column.
    """

    name: str
    rows: int
    digest: str


@contextmanager
def held(table: Table) -> Iterator[int]:
    """The newest version of a table, kept from house-keeping until the end."""
    tag = holding_tag()
    version = table.version()
    table.pin(tag, version)
    try:
        yield version
    finally:
        table.unpin(tag)


def copy_version(table: Table, version: int, *, source: Path, database: Path) -> TableContent:
    """Copies one version of a table, and those that are pinned, into another database; and compares.

    Files of a table never change, so they are copied while others write. What is only of other versions is left out.

    Args:
        table: The table; the version is held.
        version: The version.
        source: The folder of its database.
        database: The folder of the other one.

    Raises:
        ServiceError: STORE_FULL, STORE_UNAVAILABLE; INTERNAL when the copy holds something else.
    """
    folder, copy = source / f"{table.name}.lance", database / f"{table.name}.lance"
    pinned = {tag: number for tag, number in table.pins().items() if not tag.startswith(HOLDING)}
    kept = {version, *(number for number in pinned.values() if number <= version)}
    with translated(f"copying {table.name}"):
        for file in sorted(files_of(folder)):
            inside = file.relative_to(folder)
            if not _wanted(inside, kept, pinned):
                continue
            (copy / inside).parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(file, copy / inside)
            except FileNotFoundError:
                continue  # house-keeping took it: it is of a version that is not held
    expected = content(table.name, table.snapshot(version), table.key)
    found = _tidied(copy, table, keep_pinned=bool(pinned))
    if found != expected:
        raise ServiceError(
            "INTERNAL",
            f"the copy of {table.name} holds {found.rows} rows with digest {found.digest}, the table {expected.rows} "
            f"with digest {expected.digest}; nothing was kept of the snapshot, make it again",
            table=table.name,
        )
    return found


def content(name: str, snapshot: Snapshot, key: str) -> TableContent:
    """What one version of a table holds."""
    columns = [field.name for field in snapshot.schema if not _is_bulk(field.type)]
    rows = snapshot.select(columns)
    rows = rows.take(pc.sort_indices(rows[key]))
    total = hashlib.sha256(f"{rows.num_rows}:{','.join(columns)}".encode())
    for column in columns:
        update_with_texts(total, pc.fill_null(rows[column].cast(pa.large_string()), "\0"))
    return TableContent(name=name, rows=rows.num_rows, digest=total.hexdigest())


def _is_bulk(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary(kind))


def _wanted(inside: Path, kept: set[int], pinned: dict[str, int]) -> bool:
    if inside.parts[0] == "_versions":
        return inside.suffix == ".manifest" and _version_of(inside.stem) in kept
    if inside.parts[0] == "_refs":
        return inside.stem in pinned and pinned[inside.stem] in kept
    return True


def _version_of(stem: str) -> int:
    number = int(stem)
    return _NEWEST - number if len(stem) == 20 else number


def _tidied(copy: Path, table: Table, *, keep_pinned: bool) -> TableContent:
    """What a copy holds, once it is rid of the files that no version of it needs."""
    with translated(f"reading the copy of {table.name}"):
        handle = Database(uri=str(copy.parent), session=new_session()).connection.open_table(table.name)
        if not keep_pinned:
            # Nobody else knows of the copy: whatever no version needs may go at once.
            handle.optimize(cleanup_older_than=timedelta(milliseconds=1), delete_unverified=True)
        return content(table.name, Snapshot(int(handle.version), handle.schema, handle), table.key)


def content_of(database: Path, name: str) -> TableContent:
    """What a table in a folder holds now.

    Raises:
        ServiceError: STORE_UNAVAILABLE.
    """
    with translated(f"reading {name}"):
        handle = Database(uri=str(database), session=new_session()).connection.open_table(name)
        return content(name, Snapshot(int(handle.version), handle.schema, handle), handle.schema.names[0])
