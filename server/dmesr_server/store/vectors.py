"""Tables of vectors: one row an item, and for each source a nullable vector and the hash of what it encodes.

Shapes: N items, D width of a source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..chunks import one_array
from ..errors import ServiceError
from .database import Database, decoded, encoded
from .fingerprints import fingerprint_of, update_with_texts
from .items import RowOutcome
from .scans import scanned
from .schemas import TableState, incarnation
from .snapshots import Snapshot, select_keys, version_not_found
from .tables import READ_WHOLE_SHARE, Table
from .vector_columns import (
    FIXED_FIELDS,
    SourceColumn,
    column_names,
    rows_of,
    source_dims,
    source_fields,
    vector_columns,
)
from .vector_writing import Looked, VectorWriter

_Result = TypeVar("_Result")

KEPT_FINGERPRINTS = 64  # of a table
HASH_ROWS = 32_768  # read at a time


class VectorTable:
    """Vectors by item. Safe for any thread; other processes' writes are seen by the next call."""

    def __init__(self, *, database: Database, name: str, dims: Mapping[str, int]):
        """Names the table; it is made when it is first written to.

        Args:
            database: Where it lives.
            name: Its name, safe already.
            dims: The sources that it is made with, and their widths.
        """
        fields = [column for source, dim in dims.items() for column in source_fields(source, dim)]
        self._table = Table(
            database=database, name=name, schema=pa.schema([*FIXED_FIELDS, *fields]), indexed=["item_id"]
        )
        self._writer = VectorWriter(self._table, self.sources)
        self._fingerprints: dict[tuple[bytes, int, tuple[str, ...]], str] = {}
        self._database = database
        self.uri = database.uri

    @property
    def name(self) -> str:
        """The table's name in the database."""
        return self._table.name

    def snapshot(self, version: int | None = None) -> Snapshot:
        """One version; the newest when None.

        Raises:
            ServiceError: VERSION_NOT_FOUND.
        """
        return self._table.snapshot(version)

    def seen(self) -> tuple[TableState, dict[str, int]]:
        """Which table of its name it is and its newest version, and the sources and their widths."""
        state, schema = self._table.seen()
        return state, source_dims(schema)

    async def opened(self, state: TableState) -> Any:
        """A version as LanceDB's asynchronous API has it. For indexes.

        Raises:
            ServiceError: VERSION_NOT_FOUND.
        """
        try:
            handle = await self._database.opened(self.name, state.version)
            if incarnation(await handle.schema()) == state.incarnation:
                return handle
        except ValueError as error:
            raise version_not_found(state.version) from error
        raise version_not_found(state.version)

    def attempt(self, what: str, act: Callable[[Any], _Result]) -> _Result | None:
        """Does something with the LanceDB table; None when there is no table. For indexes."""
        return self._table.attempt(what, act, missing=None)

    def change(self, what: str, act: Callable[[Any], _Result]) -> _Result:
        """Changes the LanceDB table itself. For indexes."""
        return self._table.change(what, act)

    # Sources

    def sources(self, version: int | None = None) -> dict[str, int]:
        """The sources and their widths, in the order of their declaration.

        Args:
            version: Of that version; None is the newest.
        """
        return source_dims(self._table.schema() if version is None else self._table.snapshot(version).schema)

    def declare(self, source: str, dim: int) -> None:
        """Makes room for a source. The same again changes nothing.

        Args:
            source: Its name.
            dim: Its width.

        Raises:
            ServiceError: DIMENSION_MISMATCH when it is there with another width.
        """
        known = self.sources().get(source)
        if known is None and self._database.read_only:
            return  # whoever writes it will declare it
        if known is None:
            try:
                self._table.change(f"declaring {source}", lambda handle: handle.add_columns(source_fields(source, dim)))
            except (ValueError, ServiceError):
                known = self.sources().get(source)  # another writer was first
                if known is None:
                    raise
            else:
                return
        if known != dim:
            raise ServiceError(
                "DIMENSION_MISMATCH",
                f"the source {source} has vectors of width {known}, not {dim}: write vectors of that width, or use "
                "another source name or recipe",
                source=source,
                expected=known,
                actual=dim,
            )

    # Writing

    def upsert(
        self,
        item_ids: Sequence[str],
        columns: Mapping[str, SourceColumn],
        *,
        allowed: Callable[[], None] | None = None,
    ) -> list[RowOutcome]:
        """Writes the given sources of the given items and leaves their other sources as they are.

        Rows whose hashes are stored already are not written again.

        Args:
            item_ids: N ids. Of an id that stands several times the last row stands.
            columns: By source. They must have been declared.
            allowed: Raises when the caller may no longer write. What others write after it was asked is not written
                over: it is asked again first.

        Returns:
            N outcomes: "inserted" (the item had no vector of these sources), "updated" or "unchanged".

        Raises:
            ServiceError: SOURCE_NOT_FOUND, DIMENSION_MISMATCH, NON_FINITE_VECTOR, or STORE_FULL, STORE_UNAVAILABLE;
                nothing was written. What `allowed` raises: some rows may have been.
        """
        known = self.sources()
        rows = rows_of(item_ids, columns, known)
        last = {item_id: index for index, item_id in enumerate(item_ids)}
        if len(last) < len(item_ids):
            rows = rows.take(pa.array(list(last.values()), pa.int64()))
        outcomes = self._writer.write(rows, allowed=allowed)
        return [outcomes[item_id] for item_id in item_ids]

    def look(self, rows: pa.Table) -> Looked:
        """Compares rows with what is stored, so that :meth:`upsert_rows` need not: that may be done meanwhile.

        Args:
            rows: As for :meth:`upsert_rows`. What of it is written in between by the caller itself is not seen.
        """
        return self._writer.look(rows)

    def upsert_rows(self, rows: pa.Table, *, looked: Looked | None = None) -> list[RowOutcome]:
        """As :meth:`upsert`, of rows that are made and looked at already; see :func:`vector_rows`.

        Args:
            rows: Each id once. The sources must have been declared.
            looked: What a look at these rows has found.
        """
        outcomes = self._writer.write(rows, looked=looked)
        return [outcomes[item_id] for item_id in rows["item_id"].to_pylist()]

    def delete(self, ids: Sequence[str]) -> None:
        """Deletes the rows of these items."""
        self._table.delete(column="item_id", values=list(dict.fromkeys(ids)))

    def drop(self) -> None:
        """Drops the table."""
        self._table.drop()

    def optimise(self) -> None:
        """Compacts the table and drops old versions, pinned ones apart."""
        self._table.optimise()

    # Reading

    def version(self) -> int:
        """The newest version; 0 when nothing was ever written."""
        return self._table.version()

    def count(self, version: int | None = None) -> int:
        """Rows of the table."""
        return self._table.count() if version is None else self._table.snapshot(version).count()

    def present(self, source: str) -> int:
        """Items that have a vector of a source now."""
        if source not in self.sources():
            return 0
        return self._table.count(where=f"{column_names(source)[1]} IS NOT NULL")

    def hashes(self, item_ids: Sequence[str]) -> dict[str, dict[str, str | None]]:
        """The stored hashes by item and source, for those of the items that have a row."""
        sources = list(self.sources())
        columns = ["item_id", *(column_names(source)[1] for source in sources)]
        rows = self._table.select_in(columns, column="item_id", values=list(dict.fromkeys(item_ids)))
        values = [rows[name].to_pylist() for name in columns[1:]]
        return {
            item_id: {source: column[index] for source, column in zip(sources, values, strict=True)}
            for index, item_id in enumerate(rows["item_id"].to_pylist())
        }

    def hash_batches(self, sources: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The stored hashes of all rows of the newest version, as they lie.

        Yields:
            Batches of item_id (utf8) and, by its name, each source's hash (utf8; null where there is no vector).
        """
        snapshot = self.snapshot()
        columns = {source: column_names(source)[1] for source in sources if source in source_dims(snapshot.schema)}
        for batch in snapshot.batches(["item_id", *columns.values()], rows=HASH_ROWS):
            nothing = pa.nulls(batch.num_rows, pa.string())
            hashes = [batch.column(columns[source]) if source in columns else nothing for source in sources]
            yield pa.record_batch([batch.column("item_id"), *hashes], names=["item_id", *sources])

    def scan(
        self, sources: Sequence[str], version: int | None = None, batch_bytes: int = 1 << 20
    ) -> Iterator[pa.RecordBatch]:
        """All rows of one version, ordered by id (UTF-8 bytes).

        Args:
            sources: The sources to read.
            version: The version; None is the newest.
            batch_bytes: About how large a batch is.

        Yields:
            Batches of item_id (utf8) and, by its name, each source (nullable fixed-size list of float32).

        Raises:
            ServiceError: VERSION_NOT_FOUND or SOURCE_NOT_FOUND, before the first batch.
        """
        snapshot = self._table.snapshot(version)
        dims = source_dims(snapshot.schema)
        names = vector_columns(sources, dims)
        vectors = [pa.field(source, pa.list_(pa.float32(), dims[source])) for source in sources]
        schema = pa.schema([pa.field("item_id", pa.string()), *vectors])
        return scanned(self._table, snapshot, ["item_id", *names], schema=schema, batch_bytes=batch_bytes)

    def take(self, item_ids: Sequence[str], sources: Sequence[str], version: int | None = None) -> pa.Table:
        """Rows of these items in the caller's order; ids may repeat and need not exist.

        Returns:
            item_id, found (bool: the item has a row) and each source (null where it has no vector).

        Raises:
            ServiceError: VERSION_NOT_FOUND or SOURCE_NOT_FOUND.
        """
        wanted = pa.array(item_ids, pa.string())
        ids = wanted.unique()
        snapshot = self._table.snapshot(version)
        names = vector_columns(sources, source_dims(snapshot.schema))
        if len(ids) >= READ_WHOLE_SHARE * snapshot.count():
            rows = snapshot.select(["item_id", *names])
        else:
            keys = ids.to_pylist()
            rows = select_keys(snapshot.select, snapshot.count, ["item_id", *names], key="item_id", keys=keys)
        return _aligned(wanted, rows, sources, names)

    def vector(self, item_id: str, source: str) -> np.ndarray | None:
        """The newest vector of one item, float32 [D]; None where it has none.

        Args:
            item_id: The item.
            source: One that has been declared: that is not looked at again, since a search begins with this.
        """
        name = column_names(source)[0]
        found = self._table.select_in([name], column="item_id", values=[item_id])[name]
        value = found[0].values if len(found) else None
        return None if value is None else np.asarray(value.to_numpy(zero_copy_only=False), np.float32)

    # Versions

    def digest(self, version: int | None = None) -> str:
        """sha256 hex over every (source, item id, hash) of a version: the same for the same content, however written.

        Raises:
            ServiceError: VERSION_NOT_FOUND.
        """
        snapshot = self._table.snapshot(version)
        total = hashlib.sha256()
        for source in sorted(source_dims(snapshot.schema)):
            name = column_names(source)[1]
            rows = snapshot.select(["item_id", name], where=f"{name} IS NOT NULL").combine_chunks()
            if not rows.num_rows:
                continue
            rows = rows.take(pc.sort_indices(rows["item_id"]))
            total.update(f"{len(source.encode())}:{source}:{rows.num_rows}:".encode())
            for column in ("item_id", name):
                update_with_texts(total, rows[column])
        return total.hexdigest()

    def fingerprint(self, sources: Sequence[str], version: int | None = None) -> str:
        """sha256 hex over all ids and these sources' hashes of a version, and over which table it is.

        Two reads of one fingerprint give the same vectors. Unlike :meth:`digest` it tells apart tables whose vectors
        were made by different means of the same texts. The last ones asked for are kept.

        Raises:
            ServiceError: VERSION_NOT_FOUND or SOURCE_NOT_FOUND.
        """
        snapshot = self._table.snapshot(version)
        key = (incarnation(snapshot.schema), snapshot.version, tuple(sources))
        known = self._fingerprints.get(key)
        if known is None:
            known = self._fingerprints[key] = fingerprint_of(snapshot, key)
            while len(self._fingerprints) > KEPT_FINGERPRINTS:
                self._fingerprints.pop(next(iter(self._fingerprints)), None)
        return known

    def pin(self, tag: str, version: int) -> None:
        """Keeps a version readable until :meth:`unpin`. The same pin again changes nothing.

        Raises:
            ServiceError: VERSION_NOT_FOUND.
        """
        self._table.pin(encoded(tag), version)

    def pins(self) -> set[str]:
        """The tags of the versions that are kept."""
        return {decoded(tag) for tag in self._table.pins()}

    def unpin(self, tag: str) -> None:
        """Gives a pin back; nothing happens when there is none."""
        self._table.unpin(encoded(tag))


def _aligned(wanted: pa.StringArray, rows: pa.Table, sources: Sequence[str], names: Sequence[str]) -> pa.Table:
    """The rows in the order of the ids that were asked for. Copies each vector once: the store has another order."""
    position = pc.index_in(wanted, one_array(rows["item_id"]))
    columns = {source: one_array(rows[name]).take(position) for source, name in zip(sources, names, strict=True)}
    return pa.table({"item_id": wanted, "found": pc.is_valid(position), **columns})
