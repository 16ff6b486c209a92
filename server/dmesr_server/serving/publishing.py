"""Takes in an artefact as it is uploaded: bounded, into a folder of its own, moved into place once it is sound."""

from __future__ import annotations

import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dmesr_server.control import Control, ModelRow
from dmesr_server.errors import ServiceError, invalid_field
from dmesr_server.serving import towers
from dmesr_server.serving.artefact import (
    FILE_NAMES,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Artefact,
    invalid,
    load,
    parse_manifest,
)
from dmesr_server.serving.live import LiveModels, ModelKey
from dmesr_server.store import Store

MAX_ARTEFACT_BYTES = 4 * 1024**3  # of all files
_INCOMING = ".incoming"  # no catalog can have that name


class ArtefactUpload:
    """The files of one artefact on their way in. Close it in the end: what was not kept is removed."""

    def __init__(self, *, root: Path):
        """Begins an upload.

        Args:
            root: The folder of all artefacts.

        Raises:
            ServiceError: STORE_FULL or STORE_UNAVAILABLE.
        """
        self._root = root
        self.folder = root / _INCOMING / uuid.uuid4().hex
        self._name: str | None = None
        self._file: BinaryIO | None = None
        self._done: set[str] = set()
        self._bytes = 0
        self._file_bytes = 0
        with _disk_errors():
            self.folder.mkdir(parents=True)

    def close(self) -> None:
        """Removes what was not kept."""
        self._close_file()
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, file_name: str, data: bytes) -> None:
        """Appends a chunk to a file; the chunks of a file follow each other.

        Raises:
            ServiceError: INVALID_FIELD for a name that is no file of an artefact or comes again after another file;
                REQUEST_TOO_LARGE; STORE_FULL; STORE_UNAVAILABLE.
        """
        if file_name != self._name:
            self._next_file(file_name)
        self._bytes += len(data)
        self._file_bytes += len(data)
        limit = MAX_MANIFEST_BYTES if file_name == MANIFEST else MAX_ARTEFACT_BYTES
        actual = self._file_bytes if file_name == MANIFEST else self._bytes
        if actual > limit:
            what = MANIFEST if file_name == MANIFEST else "the artefact"
            raise ServiceError(
                "REQUEST_TOO_LARGE",
                f"{what} has more than {limit} bytes, the most that is allowed",
                field="data",
                expected=limit,
                actual=actual,
            )
        assert self._file is not None
        with _disk_errors():
            self._file.write(data)

    def check(self) -> Artefact:
        """The artefact, once all of it is there.

        Raises:
            ServiceError: INVALID_ARTEFACT, saying what breaks the contract.
        """
        self._close_file()
        artefact = load(self.folder, verify_checksums=True)
        unlisted = self._done - set(artefact.manifest.files) - {MANIFEST}
        if unlisted:
            name = sorted(unlisted)[0]
            raise invalid(f"{name} was sent, but the manifest does not list it", file=name)
        towers.rehearse(artefact)
        return artefact

    def keep(self, *, catalog: str, name: str, version: int) -> str:
        """Moves a checked artefact to its place. Called within the transaction that makes the model's row.

        So whoever sees the row finds the files. A folder that is there already belongs to no row: a process died
        between this move and its commit, and the version was given out again.

        Returns:
            The folder where it is.
        """
        place = self._root / catalog / name / str(version)
        with _disk_errors():
            place.parent.mkdir(parents=True, exist_ok=True)
            _sync(self.folder)
            shutil.rmtree(place, ignore_errors=True)
            self.folder.rename(place)
            _sync(place.parent)
        return str(place)

    def _next_file(self, name: str) -> None:
        if name not in FILE_NAMES:
            raise invalid_field("file_name", f"must be one of {', '.join(sorted(FILE_NAMES))}, got {name!r:.80}")
        if name in self._done:
            raise invalid_field("file_name", f"the chunks of {name} must follow each other, but it came a second time")
        self._close_file()
        self._name, self._file_bytes = name, 0
        self._done.add(name)
        with _disk_errors():
            self._file = (self.folder / name).open("xb")

    def _close_file(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with _disk_errors(), file:
                file.flush()
                os.fsync(file.fileno())


def check_recipe(artefact: Artefact, *, control: Control, store: Store, catalog: str) -> None:
    """Holds the artefact's sources against the recipe that it was trained on.

    Raises:
        ServiceError: RECIPE_NOT_FOUND, SOURCE_NOT_FOUND or DIMENSION_MISMATCH.
    """
    manifest = artefact.manifest
    if not manifest.sources:
        return
    recipe = control.recipes.resolve(catalog, manifest.recipe_id)
    if recipe.recipe_id != manifest.recipe_id:  # a name that happens to look like an id
        raise invalid("manifest.json: recipe_id must be the recipe's id, not its name", key="recipe_id")
    dims = store.catalog(catalog).embeddings(recipe.recipe_id).sources()
    for source in manifest.sources:
        if source.name not in dims:
            raise ServiceError(
                "SOURCE_NOT_FOUND",
                f"the model reads the source {source.name!r}, recipe {recipe.recipe_id} has: "
                f"{', '.join(dims) or 'none'}; enrich with the sources that the model was trained on",
                source=source.name,
                recipe=recipe.recipe_id,
                sources=", ".join(dims),
            )
        if dims[source.name] != source.dim:
            raise ServiceError(
                "DIMENSION_MISMATCH",
                f"the model reads the source {source.name!r} {source.dim} wide, recipe {recipe.recipe_id} holds it "
                f"{dims[source.name]} wide; train on this recipe",
                source=source.name,
                expected=dims[source.name],
                actual=source.dim,
            )


def delete(row: ModelRow, *, control: Control, store: Store, live: LiveModels) -> None:
    """Deletes a model that no alias points to: its row, its adapted vectors, its files.

    Raises:
        ServiceError: MODEL_IN_USE or MODEL_NOT_FOUND.
    """
    key = ModelKey.of(row)
    control.models.delete(key.catalog, key.name, key.version)
    live.forget(catalog=key.catalog, name=key.name, version=key.version)
    # An adaptation that is under way would make the table anew: it stops at the next chunk, as the row is gone.
    with adaptation_stopped(control, key):
        store.catalog(key.catalog).adapted(key.ref, parse_manifest(row.manifest_json).vector_dim).drop()
        store.catalog(key.catalog).trained(key.ref).drop()
    shutil.rmtree(row.artefact_path, ignore_errors=True)


@contextmanager
def adaptation_stopped(control: Control, key: ModelKey, *, wait_seconds: float = 10.0) -> Iterator[None]:
    """Holds a model's lease, so that nobody adapts it; waits for whoever does, but not for ever."""
    owner = f"delete-{uuid.uuid4().hex}"
    deadline = time.monotonic() + wait_seconds
    while (lease := control.leases.acquire(key.lease, owner, 30.0)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        yield
    finally:
        if lease is not None:
            control.leases.release(lease)


def remove_leftovers(root: Path, *, older_than_seconds: float = 86_400) -> None:
    """Removes uploads that a killed process left behind: those that nobody has written to for a day."""
    incoming = root / _INCOMING
    for folder in incoming.iterdir() if incoming.is_dir() else ():
        with suppress(OSError):  # another process may be removing it too
            newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if newest < time.time() - older_than_seconds:
                shutil.rmtree(folder, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Makes the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Turns what a disk can do into the reasons that a caller is told."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ServiceError(
                "STORE_FULL", "the disk under the store is full; free some space and publish again"
            ) from error
        raise ServiceError(
            "STORE_UNAVAILABLE",
            f"the store's folder of artefacts cannot be written: {error.strerror}",
            errno=error.errno,
        ) from error
