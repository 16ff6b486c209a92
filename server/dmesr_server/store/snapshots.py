"""Reading one version of a table: it stays what it is while others write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import ServiceError
from ..telemetry import traces
from .database import is_in, service_error, span, translated
from .schemas import TableState, incarnation

QUERY_BATCHES = 5  # of a read of all rows, asked for at a time
VALUES_OF_A_RANGE = 64  # keys asked for from which it is looked whether they stand together
RANGE_ROWS = 2  # times the keys asked for: as many rows between the least and the greatest are read with them
IDS_PER_QUERY = 2_000  # literals of one IN list: longer lists cost more to parse than a second query
KEEP_VERSIONS = timedelta(minutes=30)  # how long a reader may take over an unpinned version


@dataclass(frozen=True)
class Snapshot:
    """One version of a table. Rows never change under it.

    Attributes:
        version: The version; 0 when the table does not exist yet.
        schema: The columns of that version.
        handle: The LanceDB table, checked out; None when it does not exist yet.
        newest: Tells the newest version there is now. That one is never cleaned up: a file that it lacks is lost.
    """

    version: int
    schema: pa.Schema
    handle: Any
    newest: Callable[[], int] | None = None

    @property
    def state(self) -> TableState:
        """Which table of its name it is, and the version."""
        return TableState(incarnation(self.schema), self.version)

    def select(self, columns: Sequence[str], *, where: str | None = None) -> pa.Table:
        """Rows that meet the condition, in no particular order.

        Raises:
            ServiceError: VERSION_NOT_FOUND when house-keeping has taken the version away meanwhile.
        """
        if self.handle is None:
            return pa.schema([self.schema.field(column) for column in columns]).empty_table()
        try:
            return select(self.handle, columns, where)
        except RuntimeError as error:
            raise self._fault(error) from error

    def batches(self, columns: Sequence[str], *, rows: int) -> Iterator[pa.RecordBatch]:
        """All rows, so many at a time, as they lie.

        Lance reads ahead as far as a query goes, however slowly it is taken: each query asks for a few batches.

        Raises:
            ServiceError: VERSION_NOT_FOUND when house-keeping has taken the version away meanwhile.
        """
        if self.handle is None:
            return
        step = QUERY_BATCHES * rows
        try:
            for start in range(0, self.handle.count_rows(), step):
                query = self.handle.search().select(list(columns)).limit(step).offset(start)
                for batch in query.to_batches(rows):
                    yield batch.select(list(columns))
        except (RuntimeError, OSError) as error:
            raise self._fault(error) from error

    def _fault(self, error: Exception, what: str = "a read") -> ServiceError:
        if "Not found" in str(error) and (self.newest is None or self.newest() != self.version):
            return version_not_found(self.version)
        return service_error(what, error)

    def count(self, *, where: str | None = None) -> int:
        """How many rows there are, or meet the condition.

        Raises:
            ServiceError: VERSION_NOT_FOUND when house-keeping has taken the version away meanwhile.
        """
        if self.handle is None:
            return 0
        with translated("counting rows"):
            try:
                return int(self.handle.count_rows(where))
            except (RuntimeError, OSError) as error:
                raise self._fault(error, "counting rows") from error


def version_not_found(version: int) -> ServiceError:
    """The version is not, or no longer, there."""
    return ServiceError(
        "VERSION_NOT_FOUND",
        f"version {version} of the table does not exist (any more): old versions are cleaned up after a time "
        "(store.keep_versions_seconds); pin the newest version and read that",
        version=version,
    )


def select(handle: Any, columns: Sequence[str], where: str | None) -> pa.Table:
    """Rows of a LanceDB table as it stands or is checked out."""
    query = handle.search().select(list(columns)).limit(None)
    with traces.step("store read", {"db.collection.name": handle.name}) as span:
        rows = (query.where(where) if where else query).to_arrow().select(list(columns))
        span.note({"db.response.returned_rows": rows.num_rows})
    return rows


def select_in(
    select: Callable[..., pa.Table], columns: Sequence[str], *, column: str, values: Sequence[str]
) -> pa.Table:
    """Rows whose column is one of the values, asked for in lists of a length that parses well."""
    parts = [
        select(columns, where=is_in(column, values[start : start + IDS_PER_QUERY]))
        for start in range(0, max(len(values), 1), IDS_PER_QUERY)
        if values
    ]
    return pa.concat_tables(parts) if parts else select(columns, where="false")


def select_keys(
    select: Callable[..., pa.Table], count: Callable[..., int], columns: Sequence[str], *, key: str, keys: Sequence[str]
) -> pa.Table:
    """As :func:`select_in`, of the table's key.

    What is written together mostly stands together, and a range is read in an eighth of a long list's time.
    """
    if len(keys) >= VALUES_OF_A_RANGE:
        where = span(key, keys)
        if count(where=where) <= RANGE_ROWS * len(keys):
            return those_in(select(list(dict.fromkeys((*columns, key))), where=where), columns, column=key, values=keys)
    return select_in(select, columns, column=key, values=keys)


def those_in(rows: pa.Table, columns: Sequence[str], *, column: str, values: Sequence[str]) -> pa.Table:
    """Of some rows those whose column is one of the values."""
    wanted = pc.is_in(rows[column], value_set=pa.array(values, pa.string()))
    return rows.filter(wanted).select(list(columns))
