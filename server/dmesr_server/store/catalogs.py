"""The store as a whole and one catalog of it: which tables there are, and what belongs together."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pyarrow as pa

from ..errors import ServiceError
from . import adapted, embeddings
from .adapted import AdaptedTable
from .database import Database, decoded, encoded, new_session, translated
from .descriptions import DescriptionTable
from .embeddings import EmbeddingTable
from .index_records import IndexRecords
from .items import ItemTable
from .pictures import PictureTable
from .tables import Table, key_field
from .tidiness import files_of, tidiness
from .trained import PREFIX as TRAINED_PREFIX
from .trained import TrainedTable
from .vectors import VectorTable

SCHEMA_VERSION = 1
_MARKER = "dmesr_store"


@dataclass(frozen=True)
class TableStats:
    """What a table holds.

    Attributes:
        name: The table.
        rows: Its rows.
        version: Its version.
        bytes: Bytes on disk, old versions included; 0 where the store is remote.
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
            shape = tidiness(handle, folder=self._database.folder(name))
        sizes = _file_sizes(self._database.folder(name))
        return TableStats(
            name=name,
            rows=rows,
            version=version,
            bytes=sum(sizes),
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
        self, *, uri: str, keep_versions: timedelta | None = None, tidied: bool = False, read_only: bool = False
    ):
        """Opens the store and checks who made it.

        Args:
            uri: A folder (made when it is not there) or any URI of `lancedb.connect`.
            keep_versions: How long a reader may take over an unpinned version; the usual when None.
            tidied: Somebody looks after the tables in the background, so that writers need not.
            read_only: Write nothing. The store must be there.

        Raises:
            ServiceError: STORE_UNAVAILABLE when it cannot be reached or was made by a newer version.
        """
        self.uri = uri if "://" in uri else str(Path(uri).expanduser().resolve())
        self._catalogs: dict[str, CatalogStore] = {}
        self._lock = threading.Lock()
        if "://" not in self.uri and not read_only:
            with translated(f"making the folder {self.uri}"):
                Path(self.uri).mkdir(parents=True, exist_ok=True)
        self._session = new_session()
        self._keep_versions = keep_versions
        self._tidied = tidied
        self._read_only = read_only
        database = Database(uri=self.uri, session=self._session, read_only=read_only)
        nowhere = ", and a read-only server makes none: start the writing server first"
        self.schema_version = _check_schema(database, missing=nowhere if read_only else None)

    def check(self) -> None:
        """Looks whether the store is still there, still readable and still this server's.

        Raises:
            ServiceError: STORE_UNAVAILABLE.
        """
        # Otherwise the connection itself would make a folder that is not there.
        _check_schema(
            Database(uri=self.uri, session=new_session(), read_only=True),
            missing=": its folder was moved, deleted or unmounted; put it back",
        )

    def catalog(self, name: str) -> CatalogStore:
        """The tables of a catalog. Whether the catalog exists is for the control database to say."""
        with self._lock:
            if name not in self._catalogs:
                database = Database(
                    uri=f"{self.uri}/catalogs/{encoded(name)}",
                    session=self._session,
                    keep_versions=self._keep_versions,
                    tidied=self._tidied,
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


def _check_schema(database: Database, *, missing: str | None) -> int:
    """The schema's version; of a store that is not there too, which is made unless `missing` has words for it."""
    marker = Table(
        database=database,
        name=_MARKER,
        schema=pa.schema([key_field("name"), pa.field("schema_version", pa.int32(), nullable=False)]),
        indexed=[],
    )
    versions = marker.select(["schema_version"])["schema_version"].to_pylist()
    if not versions and missing is not None:
        raise ServiceError("STORE_UNAVAILABLE", f"there is no store at {database.uri}{missing}", uri=database.uri)
    if not versions:
        row = [pa.array(["schema"]), pa.array([SCHEMA_VERSION], pa.int32())]
        marker.merge(pa.table(row, names=["name", "schema_version"]), update=False)
        versions = marker.select(["schema_version"])["schema_version"].to_pylist()
    found = max(versions)
    if found > SCHEMA_VERSION:
        raise ServiceError(
            "STORE_UNAVAILABLE",
            f"the store at {database.uri} was made by a newer version of this server (schema {found}, this server "
            f"knows {SCHEMA_VERSION}): upgrade the server, or point store.uri to another folder",
            uri=database.uri,
            expected=SCHEMA_VERSION,
            actual=found,
        )
    return int(found)


def _file_sizes(folder: Path | None) -> list[int]:
    sizes = []
    for file in files_of(folder) if folder is not None else ():
        try:
            sizes.append(file.stat().st_size)
        except FileNotFoundError:  # house-keeping took it away meanwhile
            continue
    return sizes
