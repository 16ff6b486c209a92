"""The way back from a snapshot: into an empty store, with no server on it, and compared before it counts."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dmesr_server.control import Control
from dmesr_server.errors import ServiceError
from dmesr_server.store import SCHEMA_VERSION, TableContent, content_of, encoded, mark_version
from dmesr_server.upkeep.snapshots import ARTEFACTS, CONTENTS, CONTROL, FORMAT, STORE, Snapshot, disk_errors

_BLOCK_BYTES = 1 << 20


class RestoreError(ValueError):
    """The snapshot cannot be restored. The message says what is wrong and what to do."""


def restore(*, snapshot: Path, store: Path) -> Snapshot:
    """Makes a store of a snapshot.

    Every file is compared with its hash while it is copied, and every table's rows and digest with the snapshot's
    once it can be read. Only then does the store appear.

    Args:
        snapshot: The folder of the snapshot.
        store: The folder of the store; empty, or not there.

    Raises:
        RestoreError: The snapshot is no whole snapshot, or the store's folder is not empty. Nothing was changed.
        ServiceError: STORE_FULL or STORE_UNAVAILABLE.
    """
    snapshot, store = snapshot.expanduser().resolve(), store.expanduser().resolve()
    said = _contents(snapshot)
    with disk_errors(f"the snapshot cannot be restored to {store}"):
        if store.exists() and (not store.is_dir() or any(store.iterdir())):
            raise RestoreError(f"{store} is not empty: restore into a folder that is empty or not there yet")
        store.parent.mkdir(parents=True, exist_ok=True)
        unfinished = store.with_name(f".{store.name}.{uuid.uuid4().hex}")
        try:
            mark_version(unfinished, said["schema_version"])  # an older one is migrated by the server that opens it
            total = 0
            for name, told in said["files"].items():
                total += _copy(snapshot / STORE / name, unfinished / name, told, snapshot)
            tables = _compared(unfinished, said)
            _check_control(unfinished, store)
            if store.exists():
                store.rmdir()
            unfinished.rename(store)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return Snapshot(folder=store, files=len(said["files"]), bytes=total, tables=tables)


def restore_for_people(*, snapshot: Path, store: Path) -> dict[str, Any]:
    """As :func:`restore`, with faults and an answer that a command line can show.

    Raises:
        ValueError: It cannot be done; the message says why.
    """
    try:
        done = restore(snapshot=snapshot, store=store)
    except ServiceError as error:
        raise RestoreError(error.message) from error
    tables = [{"catalog": catalog, **asdict(content)} for catalog, content in done.tables]
    return {"folder": str(done.folder), "files": done.files, "bytes": done.bytes, "tables": tables}


def _contents(snapshot: Path) -> dict[str, Any]:
    try:
        said = json.loads((snapshot / CONTENTS).read_text())
        known = {"format": int(said["format"]), "schema_version": int(said["schema_version"])}
        paths = [Path(name) for name in said["files"]]
        if any(path.is_absolute() or ".." in path.parts for path in paths):
            raise ValueError("it names a file outside of it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RestoreError(
            f"{snapshot} is no snapshot: {CONTENTS} cannot be read ({why}); name the folder that 'store snapshot' made"
        ) from error
    if known["format"] != FORMAT or known["schema_version"] > SCHEMA_VERSION:
        raise RestoreError(
            f"{snapshot} was made by a newer version of this server (format {known['format']}, schema "
            f"{known['schema_version']}; known are {FORMAT} and {SCHEMA_VERSION}): restore it with that version"
        )
    result: dict[str, Any] = said
    return result


def _copy(source: Path, target: Path, told: dict[str, Any], snapshot: Path) -> int:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    try:
        with source.open("rb") as reading, target.open("wb") as writing:
            while block := reading.read(_BLOCK_BYTES):
                digest.update(block)
                size += writing.write(block)
            writing.flush()
            os.fsync(writing.fileno())
    except FileNotFoundError as error:
        raise RestoreError(f"{snapshot} is not whole: {source} is missing; copy the snapshot again") from error
    if (size, digest.hexdigest()) != (told["bytes"], told["sha256"]):
        raise RestoreError(
            f"{snapshot} is damaged: {source} has {size} bytes and hash {digest.hexdigest()}, {CONTENTS} says "
            f"{told['bytes']} and {told['sha256']}; copy the snapshot again, or take another one"
        )
    return size


def _compared(folder: Path, said: dict[str, Any]) -> tuple[tuple[str, TableContent], ...]:
    found = []
    for told in said["tables"]:
        expected = TableContent(name=told["name"], rows=told["rows"], digest=told["digest"])
        actual = content_of(folder / "catalogs" / encoded(told["catalog"]), expected.name)
        if actual != expected:
            raise RestoreError(
                f"the table {expected.name} of catalog {told['catalog']} came back with {actual.rows} rows and digest "
                f"{actual.digest}, the snapshot says {expected.rows} and {expected.digest}; nothing was restored"
            )
        found.append((told["catalog"], actual))
    return tuple(found)


def _check_control(folder: Path, store: Path) -> None:
    """Makes the control database ready for its new place, and sees that what it tells of is there."""
    control = Control(f"sqlite:///{folder / CONTROL}")
    try:
        control.migrate(keep_old=False)  # the snapshot itself is what it was
        for catalog in control.catalogs.list():
            for model in control.models.list(catalog.name, page_size=1_000_000):
                place = folder / ARTEFACTS / catalog.name / model.name / str(model.version)
                if not place.is_dir():
                    raise RestoreError(f"the files of model {model.ref} of catalog {catalog.name} are missing")
        control.moved(store / ARTEFACTS)
    except ServiceError as error:
        raise RestoreError(f"the control database of the snapshot cannot be used: {error.message}") from error
    finally:
        control.close()
