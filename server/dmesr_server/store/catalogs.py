"""The store as a whole and one catalog of it: which tables there are, and what belongs together."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from ..errors import ServiceError
from . import adapted, embeddings, versions
from .adapted import AdaptedTable
from .database import Database, decoded, encoded, new_session, translated
from .descriptions import DescriptionTable
from .embeddings import EmbeddingTable
from .index_records import IndexRecords
from .items import ItemTable
from .pictures import PictureTable
from .tables import Table
from .tidiness import files_of, held_bytes, tidiness
from .trained import PREFIX as TRAINED_PREFIX
from .trained import TrainedTable
from .vectors import VectorTable


@dataclass(frozen=True)
class TableStats:
    """What a table holds.

    Attributes:
        name: The table.
        rows: Its rows.
        version: Its version.
        bytes: Bytes on disk, old versions and indexes included; where the store is remote, about what the newest
            version's rows take.
        files: Files on disk; 0 where the store is remote.
        versions: That can still be read.
        fragments: Pieces that the newest version is in; compaction makes few of many.
    """

    name: str
    rows: int
    version: int
    bytes: int
    files: int
    versions: int
    fragments: int


@dataclass(frozen=True)
class DeleteOutcome:
    """What a delete did.

    Attributes:
        deleted: Items that were there and are gone.
        missing: Ids that no item had, in the order given.
    """

    deleted: int
    missing: list[str]


class CatalogStore:
    """The tables of one catalog. Safe for any thread."""

    def __init__(self, *, database: Database):
        self._database = database
        self.items = ItemTable(database=self._database)
        self.pictures = PictureTable(database=self._database)
        self.descriptions = DescriptionTable(database=self._database)
        self.indexes = IndexRecords(database=self._database)
        self._vectors: dict[str, VectorTable] = {}  # by table name
        self._lock = threading.Lock()

    def embeddings(self, recipe_id: str) -> EmbeddingTable:
        """The vectors of an embedding recipe; there may be none yet."""
        with self._lock:
            table = self._vectors.get(embeddings.PREFIX + encoded(recipe_id))
            if table is None:
                table = EmbeddingTable(database=self._database, recipe_id=recipe_id)
                self._vectors[table.name] = table
            assert isinstance(table, EmbeddingTable)
            return table

    def adapted(self, model_key: str, dim: int | None = None) -> AdaptedTable:
        """The adapted vectors of a model; there may be none yet.

        Args:
            model_key: What tells the model from all others of the catalog, for instance "name:version".
            dim: Width of its vectors; None takes the stored ones' or that of the first ones written.

        Raises:
            ServiceError: DIMENSION_MISMATCH when there are some of another width.
        """
        with self._lock:
            table = self._vectors.get(adapted.PREFIX + encoded(model_key))
            if table is None:
                table = AdaptedTable(database=self._database, model_key=model_key, dim=dim)
                self._vectors[table.name] = table
            assert isinstance(table, AdaptedTable)
        if dim is not None:
            table.declare(adapted.VECTOR, dim)
        return table

    def trained(self, model_key: str) -> TrainedTable:
        """What a model was trained on; there may be nothing kept of it."""
        return TrainedTable(database=self._database, model_key=model_key)

    def vector_tables(self) -> list[VectorTable]:
        """All tables of vectors that there are."""
        for name in self._database.names():
            if name.startswith(embeddings.PREFIX):
                self.embeddings(decoded(name.removeprefix(embeddings.PREFIX)))
            elif name.startswith(adapted.PREFIX):
                self.adapted(decoded(name.removeprefix(adapted.PREFIX)))
        with self._lock:
            return list(self._vectors.values())

    def delete_items(self, ids: Sequence[str]) -> DeleteOutcome:
        """Deletes items with their descriptions and vectors. Pictures stay: other items may have the same."""
        asked = list(dict.fromkeys(ids))
        there = self.items.existing(asked)
        # The items go last: a delete that was cut short is done again by the same call.
        self.descriptions.delete(asked)
        for table in self.vector_tables():
            table.delete(asked)
        self.items.delete(asked)
        return DeleteOutcome(deleted=len(there), missing=[item_id for item_id in asked if item_id not in there])

    def stats(self) -> list[TableStats]:
        """What the tables hold, by name."""
        return [self._table_stats(name) for name in self._database.names()]

    def _table_stats(self, name: str) -> TableStats:
        with translated(f"reading {name}"):
            handle = self._database.connection.open_table(name)
            rows, version = int(handle.count_rows()), int(handle.version)
            folder = self._database.folder(name)
            shape = tidiness(handle, folder=folder)
            remote_bytes = held_bytes(handle) if folder is None else 0
        sizes = _file_sizes(folder)
        return TableStats(
            name=name,
            rows=rows,
            version=version,
            bytes=sum(sizes) + remote_bytes,
            files=len(sizes),
            versions=shape.versions,
            fragments=shape.fragments,
        )

    def tables(self) -> list[Table]:
        """All tables that there are, for house-keeping."""
        there = set(self._database.names())
        own = (self.items._table, self.pictures._table, self.descriptions._table, self.indexes._table)
        trained = [self.trained(decoded(name.removeprefix(TRAINED_PREFIX))) for name in there if _is_trained(name)]
        tables = [*own, *(table._table for table in self.vector_tables()), *(table._table for table in trained)]
        return [table for table in tables if table.name in there]

    def optimise(self) -> None:
        """Compacts every table and drops old versions, pinned ones apart."""
        for table in self.tables():
            table.optimise()

    def _drop(self) -> None:
        for name in self._database.names():
            self._database.drop(name)
        if "://" not in self._database.uri:
            shutil.rmtree(self._database.uri, ignore_errors=True)


class Store:
    """All catalogs' tables. Safe for any thread; several processes may share one."""

    def __init__(
        self,
        *,
        uri: str,
        keep_versions: timedelta | None = None,
        tidied: bool = False,
        one_host: bool = True,
        read_only: bool = False,
        steps: Sequence[versions.Step] = versions.STEPS,
    ):
        """Opens the store and checks who made it. One of an older version must be migrated before it is used.

        Args:
            uri: A folder (made when it is not there) or any URI of `lancedb.connect`.
            keep_versions: How long a reader may take over an unpinned version; the usual when None.
            tidied: Somebody looks after the tables in the background, so that writers need not.
            one_host: All that write are processes of one machine, which its files keep apart: new rows are appended.
            read_only: Write nothing. The store must be there, and of this version.
            steps: What leads from version to version.

        Raises:
            ServiceError: STORE_UNAVAILABLE when it cannot be reached or is of a version that cannot be used.
        """
        self.uri = uri if "://" in uri else str(Path(uri).expanduser().resolve())
        self._catalogs: dict[str, CatalogStore] = {}
        self._lock = threading.Lock()
        if "://" not in self.uri and not read_only:
            with translated(f"making the folder {self.uri}"):
                Path(self.uri).mkdir(parents=True, exist_ok=True)
            if not os.access(self.uri, os.W_OK):
                raise ServiceError(
                    "STORE_UNAVAILABLE",
                    f"the folder {self.uri} cannot be written to: let the server write there, or start a replica, "
                    "which only reads (--read-only)",
                    uri=self.uri,
                )
        self._session = new_session()
        self._keep_versions = keep_versions
        self._tidied = tidied
        self._one_host = one_host
        self._read_only = read_only
        self._steps = tuple(steps)
        self.newest = versions.FIRST + len(self._steps)
        self._root = Database(uri=self.uri, session=self._session, read_only=read_only)
        nowhere = ", and a read-only server makes none: start the writing server first"
        missing = nowhere if read_only else None
        self.schema_version = versions.version_of(self._root, newest=self.newest, missing=missing)
        if read_only and self.schema_version < self.newest:
            raise self._older("a read-only server changes nothing: start the writing server of this version first")

    def migrate(self, catalogs: Sequence[str], *, allowed: Callable[[], None]) -> list[str]:
        """Brings a store of an older version up to date, step by step. What was done of it before is not done again.

        Args:
            catalogs: The names of all catalogs.
            allowed: Raises when this process may no longer do it; asked before each step, and before what it did is
                written down.

        Returns:
            What was done.

        Raises:
            ServiceError: STORE_FULL or STORE_UNAVAILABLE; what `allowed` raises. The next attempt goes on from there.
        """
        done = []
        self.schema_version = versions.version_of(self._root, newest=self.newest, missing=None)
        while self.schema_version < self.newest:
            step = self._steps[self.schema_version - versions.FIRST]
            allowed()
            step.act(self, catalogs)
            allowed()
            versions.record(self._root, self.schema_version + 1)
            self.schema_version += 1
            done.append(step.what)
        return done

    def check(self) -> None:
        """Looks whether the store is still there, still readable and still this server's.

        Raises:
            ServiceError: STORE_UNAVAILABLE.
        """
        # Otherwise the connection itself would make a folder that is not there.
        database = Database(uri=self.uri, session=new_session(), read_only=True)
        away = ": its folder was moved, deleted or unmounted; put it back"
        self.schema_version = versions.version_of(database, newest=self.newest, missing=away)
        if self.schema_version < self.newest:
            raise self._older("it was replaced while this server ran; restart it")

    def _older(self, remedy: str) -> ServiceError:
        return versions.older(self.uri, found=self.schema_version, expected=self.newest, remedy=remedy)

    def catalog(self, name: str) -> CatalogStore:
        """The tables of a catalog. Whether the catalog exists is for the control database to say."""
        with self._lock:
            if name not in self._catalogs:
                database = Database(
                    uri=f"{self.uri}/catalogs/{encoded(name)}",
                    session=self._session,
                    keep_versions=self._keep_versions,
                    tidied=self._tidied,
                    one_host=self._one_host,
                    read_only=self._read_only,
                )
                self._catalogs[name] = CatalogStore(database=database)
            return self._catalogs[name]

    def drop_catalog(self, name: str) -> None:
        """Drops all tables of a catalog; nothing happens when there are none."""
        catalog = self.catalog(name)
        with self._lock:
            self._catalogs.pop(name, None)
        catalog._drop()

    def close(self) -> None:
        """Lets go of every handle."""
        with self._lock:
            self._catalogs.clear()


def _is_trained(name: str) -> bool:
    return name.startswith(TRAINED_PREFIX)


def _file_sizes(folder: Path | None) -> list[int]:
    sizes = []
    for file in files_of(folder) if folder is not None else ():
        try:
            sizes.append(file.stat().st_size)
        except FileNotFoundError:  # house-keeping took it away meanwhile
            continue
    return sizes
