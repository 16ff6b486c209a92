"""A table: opening, reading, merging and house-keeping, for any thread; other processes' writes are seen at once."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from ..chunks import one_array
from ..errors import ServiceError
from ..telemetry import traces
from .database import Database, is_conflict, is_gone, is_in, span, translated
from .indexes import make_index
from .inserts import Inserts, alone, among_merges
from .key_order import KeyOrder, key_order, ordered, position_after
from .last_seen import LastSeen, asked
from .merges import Merged, append, merge, whole_rows
from .schemas import TableState, made_now
from .snapshots import (
    IDS_PER_QUERY,
    KEEP_VERSIONS,
    Snapshot,
    select,
    select_in,
    select_keys,
    those_in,
    version_not_found,
)
from .tags import tags_of
from .tidiness import SMALL_BYTES, Tidiness, Untidied, held_bytes, tidiness, tidy

log = logging.getLogger(__name__)

READ_WHOLE_SHARE = 0.25  # of a table's rows asked for by key, from which one scan beats many look-ups
KEYS_WHOLE_SHARE = 1 / 256  # of a table's rows looked for, from which reading all keys, to keep them, is worth it
COMMIT_SECONDS = 60.0  # how long commits that others win are tried again

_Result = TypeVar("_Result")


class Table:
    """One table, for any thread of this process."""

    def __init__(self, *, database: Database, name: str, schema: pa.Schema, indexed: Sequence[str]):
        """Names the table; it is made when it is first written to.

        Args:
            database: Where it lives.
            name: Its name, safe already (:func:`encoded`).
            schema: The columns that it is made with. The first one is the key.
            indexed: Columns that get a BTREE index.
        """
        self.name = name
        self.key: str = schema.names[0]
        self._database = database
        self._schema = schema
        self._indexed = tuple(indexed)
        self._handle: Any = None
        self._opening = threading.Lock()
        # Writers of one process stand in line: it is cheaper than letting lance find the conflict and try again.
        self._writing = threading.RLock()
        self._inserts = Inserts()
        self._line_file = database.line_file(name)
        self._last_seen = LastSeen(database.own_folder(name))
        self._untidied = Untidied()
        self._key_order: KeyOrder | None = None

    # Opening

    def _open(self, *, create: bool) -> Any:
        with self._opening:
            if self._handle is None:
                self._handle = self._opened(create=create)
            return self._handle

    def _opened(self, *, create: bool) -> Any:
        try:
            return self._database.connection.open_table(self.name)
        except ValueError as error:
            if not is_gone(error):
                raise
        self._database.refuse_ruined(self.name)
        if not create:
            return None
        connection = self._database.connection
        try:
            handle = connection.create_table(self.name, schema=made_now(self._schema))
        except (RuntimeError, ValueError) as error:
            if "already exists" not in str(error) and not is_conflict(error):
                raise
            return connection.open_table(self.name)  # another writer was first
        self._make_indexes(handle)
        return handle

    def _make_indexes(self, handle: Any) -> None:
        there = {column for index in handle.list_indices() for column in index.columns}
        for column in self._indexed:
            if column in there:
                continue
            try:
                make_index(handle, column, replace=False)
            except (RuntimeError, ValueError) as error:
                # Another writer has made it, or writes just now. House-keeping tries again; reads are slower till then.
                log.debug("index on %s.%s: %s", self.name, column, error)

    def attempt(
        self, what: str, act: Callable[[Any], _Result], *, create: bool = False, missing: _Result | None = None
    ) -> _Result:
        """Does something with the live table, opening it anew when it was dropped and made again behind our back.

        Args:
            what: For messages.
            act: Gets the LanceDB table.
            create: Make the table when there is none.
            missing: The answer when there is none and it is not made.
        """
        with translated(what):
            for last in (False, True):
                handle = self._open(create=create)
                if handle is None:
                    return missing  # type: ignore[return-value]  # given by whoever does not create
                try:
                    return act(handle)
                except (RuntimeError, ValueError) as error:
                    if last or not is_gone(error):
                        raise
                    with self._opening:
                        self._handle = None
        raise AssertionError("unreachable")

    # Reading

    def schema(self) -> pa.Schema:
        """The columns as they are now."""
        return self.attempt("reading the schema", lambda handle: handle.schema, missing=self._schema)

    def version(self) -> int:
        """The newest version; 0 when the table does not exist yet."""
        return self.attempt("reading the version", lambda handle: int(handle.version), missing=0)

    def seen(self) -> tuple[TableState, pa.Schema]:
        """Which table of that name it is and its newest version, and its columns."""
        nothing = (TableState(b"", 0), self._schema)
        return self._last_seen.get(lambda: self.attempt("reading the version", asked, missing=nothing))

    def state(self) -> TableState:
        """Which table of that name it is, and its newest version."""
        return self.seen()[0]

    def count(self, *, where: str | None = None) -> int:
        """How many rows meet the condition."""
        return self.attempt("counting rows", lambda handle: int(handle.count_rows(where)), missing=0)

    def snapshot(self, version: int | None = None) -> Snapshot:
        """One version, to read in several steps.

        Args:
            version: The version; None is the newest.

        Raises:
            ServiceError: VERSION_NOT_FOUND.
        """

        def check_out(live: Any) -> Snapshot:
            wanted = int(live.version) if version is None else version
            handle = self._database.connection.open_table(self.name)
            try:
                handle.checkout(wanted)
            except ValueError as error:
                raise version_not_found(wanted) from error
            return Snapshot(version=wanted, schema=handle.schema, handle=handle, newest=self.version)

        nothing = Snapshot(version=0, schema=self._schema, handle=None)
        found = self.attempt("opening a version", check_out, missing=nothing)
        if found is nothing and version:
            raise version_not_found(version)
        return found

    def select(self, columns: Sequence[str], *, where: str | None = None) -> pa.Table:
        """Rows of the newest version that meet the condition, in no particular order."""
        missing = pa.schema([self._schema.field(column) for column in columns if column in self._schema.names])
        return self.attempt("a read", lambda handle: select(handle, columns, where), missing=missing.empty_table())

    def select_in(self, columns: Sequence[str], *, column: str, values: Sequence[str]) -> pa.Table:
        """Rows of the newest version whose column is one of the values, in no particular order."""
        if len(values) > IDS_PER_QUERY and len(values) >= READ_WHOLE_SHARE * self.count():
            return those_in(self.select(list(dict.fromkeys((*columns, column)))), columns, column=column, values=values)
        if column == self.key:
            return select_keys(self.select, self.count, columns, key=column, keys=values)
        return select_in(self.select, columns, column=column, values=values)

    def keys_in(self, values: Sequence[str]) -> list[str]:
        """Those of the values that are keys of the newest version.

        For many values of a table that changes rarely: the keys are read once and kept.
        """
        kept = self._key_order
        if kept is None or kept.state != self.state():
            if len(values) < KEYS_WHOLE_SHARE * self.count():
                return _texts(self.select_in([self.key], column=self.key, values=values)[self.key])
            kept = self.key_order(self.snapshot())
        # The short list is the one that is hashed.
        return _texts(kept.keys.filter(pc.is_in(kept.keys, value_set=pa.array(values, pa.string()))))

    def key_order(self, snapshot: Snapshot) -> KeyOrder:
        """The keys of a snapshot in order. Those of the newest version read are kept for the next reader."""
        kept = self._key_order
        if kept is not None and kept.state == snapshot.state:
            return kept
        keys = one_array(snapshot.select([self.key])[self.key])
        order = key_order(keys, state=snapshot.state)
        if kept is None or not kept.state.reaches(snapshot.state):
            self._key_order = order
        return order

    def ranges(
        self, snapshot: Snapshot, columns: Sequence[str], *, rows: int, after: str | None = None, gather: bool = True
    ) -> Iterator[pa.Table]:
        """A snapshot in order of its key, at most so many rows at a time.

        Each step asks for a range of the key. That reads about as fast as a plain scan when rows were written in
        about that order (enrichment does), and holds no more than the step in memory.

        Args:
            snapshot: The version.
            columns: What to read.
            rows: Of one step.
            after: Begin behind this key.
            gather: Each table without chunks. False spares that copy where the rows come in order.
        """
        keys = self.key_order(snapshot).keys
        start = 0 if after is None else position_after(keys, after)
        for first in range(start, len(keys), rows):
            last = min(first + rows, len(keys)) - 1
            where = span(self.key, [keys[first].as_py(), keys[last].as_py()])
            yield ordered(snapshot.select(columns, where=where), by=self.key, gather=gather)

    # Writing

    def merge(self, rows: pa.Table, *, condition: str | None = None, update: bool = True) -> Merged:
        """Inserts rows, and replaces the rows of the same key.

        Args:
            rows: Keys must be unique. Columns that are not given become null.
            condition: Replace only where this holds, in terms of `target.` and `source.`.
            update: False leaves rows alone that are there already.

        Raises:
            ServiceError: STORE_FULL or STORE_UNAVAILABLE; nothing was written.
        """

        def act(handle: Any) -> Any:
            before, schema = asked(handle)
            result = merge(handle, whole_rows(rows, schema), key=self.key, condition=condition, update=update)
            if result.version == before.version + 1:  # so nobody else was there
                self._inserts.note(keys, before=before, after=replace(before, version=result.version))
            return result

        # Rows of a fragment in order of the key make ordered reads read files front to back.
        rows = ordered(rows, by=self.key, gather=False)
        keys = _texts(rows[self.key])
        what = f"writing {rows.num_rows} rows to {self.name}"
        file = self._line_file
        with self._writing, nullcontext() if file is None else among_merges(file):
            result = self._commit(what, act)
        self._wrote(rows.num_rows)
        return Merged(inserted=result.num_inserted_rows, updated=result.num_updated_rows)

    def insert(self, rows: pa.Table, *, since: TableState) -> bool:
        """Appends rows, if it is certain that none of their keys is there.

        Args:
            rows: Keys must be unique, and were absent at a state that was asked for before it was looked.
            since: That state.

        Returns:
            Whether they are there now. If not, nothing was written: :meth:`merge` them.

        Raises:
            ServiceError: STORE_FULL or STORE_UNAVAILABLE; nothing was written.
        """

        def act(handle: Any) -> bool:
            before, schema = asked(handle)
            if not self._inserts.absent(keys, since=since, now=before):
                return False
            result = append(handle, whole_rows(rows, schema))
            self._inserts.note(keys, before=before, after=replace(before, version=result.version))
            return True

        file = self._line_file
        if file is None:
            return False
        rows = ordered(rows, by=self.key, gather=False)
        keys = _texts(rows[self.key])
        with self._writing, alone(file) as is_alone:
            inserted = is_alone and self._commit(f"writing {rows.num_rows} rows to {self.name}", act)
        if inserted:
            self._wrote(rows.num_rows)
        return inserted

    def delete(self, *, column: str, values: Sequence[str], condition: str | None = None) -> None:
        """Deletes the rows whose column is one of the values and for which the condition holds."""
        for start in range(0, len(values), IDS_PER_QUERY):
            where = is_in(column, values[start : start + IDS_PER_QUERY])
            if condition is not None:
                where = f"({where}) AND {condition}"
            # A delete that finds nothing would still make a version.
            if self.count(where=where):
                self._commit(f"deleting from {self.name}", partial(_delete, where=where))
                self._wrote(0)

    def change(self, what: str, act: Callable[[Any], _Result]) -> _Result:
        """Changes the table itself, for instance its columns or tags; made when there is none."""
        return self._commit(what, act)

    def pin(self, tag: str, version: int) -> None:
        """Keeps a version readable. The same pin again changes nothing."""
        self.snapshot(version)

        def act(handle: Any) -> None:
            known = tags_of(handle)
            if tag not in known:
                handle.tags.create(tag, version)
            elif known[tag] != version:
                handle.tags.update(tag, version)

        self._commit(f"pinning version {version}", act)
        self.snapshot(version)  # house-keeping may have been quicker than the tag

    def pins(self) -> dict[str, int]:
        """The pinned versions by tag."""
        return self.attempt("listing the pins", tags_of, missing={})

    def unpin(self, tag: str) -> None:
        """Gives a pin back; nothing happens when there is none."""

        def act(handle: Any) -> None:
            if tag in tags_of(handle):
                handle.tags.delete(tag)

        self.attempt("giving a pin back", act, missing=None)

    def drop(self) -> None:
        """Drops the table."""
        with self._writing, self._opening:
            self._handle = None
            self._key_order = None
            self._database.drop(self.name)

    def _commit(self, what: str, act: Callable[[Any], _Result]) -> _Result:
        if self._database.read_only:
            raise ServiceError("READ_ONLY", f"{what} was refused: this server is a read-only replica", operation=what)
        deadline = time.monotonic() + COMMIT_SECONDS
        pause = 0.01  # s
        with traces.step("store write", {"db.collection.name": self.name}), self._writing:
            while True:
                try:
                    return self.attempt(what, act, create=True)
                except ServiceError as error:
                    cause = error.__cause__
                    if not isinstance(cause, Exception) or not is_conflict(cause) or time.monotonic() > deadline:
                        raise
                time.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(2 * pause, 1.0)

    # House-keeping

    def _wrote(self, rows: int) -> None:
        with self._writing:
            self._untidied.wrote(rows)
            if self._untidied.due(count=None if self._database.tidied else self.count, is_small=self._is_small):
                self.optimise()

    def _is_small(self) -> bool:
        return self.attempt("looking at the size", held_bytes, missing=0) <= SMALL_BYTES

    def tidiness(self) -> Tidiness | None:
        """What there is to tidy; None when there is no table."""
        folder = self._database.folder(self.name)
        return self.attempt("looking at the files", partial(tidiness, folder=folder, key=self.key), missing=None)

    def index_keys(self) -> None:
        """Makes the key's index anew: of a million keys half a second, where a compaction would rewrite rows."""
        self.change(f"indexing {self.key}", partial(make_index, column=self.key, replace=True))

    def optimise(self) -> None:
        """Compacts fragments, brings the indexes up to date and drops old versions, pinned ones apart.

        Never raises: what was written is safe without it, and the next write tries again.
        """
        with self._writing:
            self._untidied = Untidied()
            try:
                self.attempt("house-keeping", self._optimise, missing=None)
            except ServiceError as error:
                log.warning("house-keeping of %s is put off: %s", self.name, error)

    def _optimise(self, handle: Any) -> None:
        self._make_indexes(handle)
        tidy(handle, keep=self._database.keep_versions or KEEP_VERSIONS)


def _texts(column: pa.Array | pa.ChunkedArray) -> list[str]:
    texts: list[str] = column.to_pylist()
    return texts


def _delete(handle: Any, *, where: str) -> None:
    handle.delete(where)
