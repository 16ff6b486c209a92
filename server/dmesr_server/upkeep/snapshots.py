"""Snapshots: a copy of the whole store in a folder, consistent though calls go on, and checked before it counts.

The order makes it consistent. The control database is copied first, at one moment; then the files of the models that
it tells of; then the tables of the catalogs that it tells of, items before the pictures that they name, each at the
version that it had when the copying of tables began. What is written meanwhile may be in it or not; nothing in it
points to what is not. Where something that the control database tells of was deleted meanwhile, all is copied again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from dmesr_server.control import Control
from dmesr_server.errors import ServiceError
from dmesr_server.store import Store, TableContent, copy_version, encoded, held

CONTENTS = "snapshot.json"
STORE = "store"
CONTROL = "control.sqlite"
ARTEFACTS = "artefacts"
FORMAT = 1
_ATTEMPTS = 3
_LEFT_SECONDS = 86_400.0
_LAST = ("pictures",)  # items name them, so they are copied after

#: Is told what is being done.
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Snapshot:
    """A snapshot.

    Attributes:
        folder: Where it is.
        files: Files in it.
        bytes: Their bytes.
        tables: The catalog and the content of each table.
    """

    folder: Path
    files: int
    bytes: int
    tables: tuple[tuple[str, TableContent], ...]


class _Changed(Exception):  # noqa: N818
    """Something that the copied control database tells of has been deleted since."""


def make(*, store: Store, control: Control, artefacts: Path, folder: Path, tell: Tell) -> Snapshot:
    """Copies the whole store.

    Args:
        store: The tables; a local folder.
        control: The control database.
        artefacts: The folder of the models' files.
        folder: Where to; must not be there.
        tell: Is told what is being done.

    Raises:
        ServiceError: SNAPSHOT_REFUSED, STORE_FULL, STORE_UNAVAILABLE; nothing is left of it then.
    """
    if "://" in store.uri:
        raise ServiceError(
            "SNAPSHOT_REFUSED",
            f"the store {store.uri} is no local folder: copy it by the means of where it is (a bucket's versions), "
            "right after the control database",
            uri=store.uri,
        )
    if folder.exists():
        raise _taken(folder)
    unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    with disk_errors(f"the snapshot {folder.name} cannot be written"):
        _remove_leftovers(folder.parent)
        try:
            for _ in range(_ATTEMPTS):
                unfinished.mkdir(parents=True)
                try:
                    tables = _copy(store, control, artefacts, unfinished / STORE, tell)
                    break
                except _Changed as changed:
                    shutil.rmtree(unfinished)
                    why = str(changed)
            else:
                raise ServiceError(
                    "SNAPSHOT_REFUSED", f"{why} while it was being copied, {_ATTEMPTS} times over: try again later"
                )
            tell("hashing the files")
            files = dict(_hashes(unfinished / STORE))
            _write_contents(unfinished / CONTENTS, store.schema_version, tables, files)
            try:
                unfinished.rename(folder)
            except OSError as error:
                raise _taken(folder) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    sizes = [size for size, _ in files.values()]
    return Snapshot(folder=folder, files=len(sizes), bytes=sum(sizes), tables=tuple(tables))


def _copy(store: Store, control: Control, artefacts: Path, into: Path, tell: Tell) -> list[tuple[str, TableContent]]:
    into.mkdir()
    tell("copying the control database")
    control.copy(into / CONTROL)
    copied = Control(f"sqlite:///{into / CONTROL}")
    try:
        catalogs = [row.name for row in copied.catalogs.list()]
        models = [row for name in catalogs for row in copied.models.list(name, page_size=1_000_000)]
    finally:
        copied.close()
    _one_file(into / CONTROL)
    for model in models:
        tell(f"copying the model {model.ref} of {model.catalog}")
        try:
            shutil.copytree(model.artefact_path, into / ARTEFACTS / model.catalog / model.name / str(model.version))
        except (FileNotFoundError, shutil.Error) as error:
            raise _Changed(f"the model {model.ref} of catalog {model.catalog} was deleted") from error
    found: list[tuple[str, TableContent]] = []
    with contextlib.ExitStack() as holding:
        versions = []
        for name in catalogs:
            for table in sorted(store.catalog(name).tables(), key=lambda table: (table.name in _LAST, table.name)):
                versions.append((name, table, holding.enter_context(held(table))))
        for name, table, version in versions:
            tell(f"copying the table {table.name} of {name}")
            place = Path("catalogs") / encoded(name)
            (into / place).mkdir(parents=True, exist_ok=True)
            done = copy_version(table, version, source=Path(store.uri) / place, database=into / place)
            found.append((name, done))
    gone = set(catalogs) - {row.name for row in control.catalogs.list()}
    if gone:
        raise _Changed(f"the catalog {min(gone)} was dropped")
    return found


def _remove_leftovers(root: Path) -> None:
    """Removes what killed processes left of snapshots that were never finished."""
    for left in root.glob(".*.*"):
        with contextlib.suppress(OSError):
            if left.is_dir() and time.time() - left.stat().st_mtime > _LEFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


def _one_file(database: Path) -> None:
    """Removes what opening an SQLite file leaves beside it; all of it is in the file once it is closed."""
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)


def _hashes(folder: Path) -> Iterator[tuple[str, tuple[int, str]]]:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
                os.fsync(opened.fileno())
            yield str(file.relative_to(folder)), (file.stat().st_size, digest)


def _write_contents(
    file: Path, schema_version: int, tables: list[tuple[str, TableContent]], files: dict[str, tuple[int, str]]
) -> None:
    said = {
        "format": FORMAT,
        "schema_version": schema_version,
        "created": datetime.now(UTC).isoformat(),
        "tables": [{"catalog": name, **asdict(content)} for name, content in tables],
        "files": {path: {"bytes": size, "sha256": digest} for path, (size, digest) in files.items()},
    }
    with file.open("w") as opened:
        json.dump(said, opened, indent=1)
        opened.flush()
        os.fsync(opened.fileno())


def _taken(folder: Path) -> ServiceError:
    return ServiceError(
        "SNAPSHOT_REFUSED", f"there is a folder {folder} already: choose another name", folder=str(folder)
    )


@contextlib.contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turns what a disk can do into the reasons that a caller is told."""
    try:
        yield
    except OSError as error:
        reason = "STORE_FULL" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "STORE_UNAVAILABLE"
        raise ServiceError(reason, f"{what}: {error.strerror or error}: {error.filename or ''}".rstrip(": ")) from error
