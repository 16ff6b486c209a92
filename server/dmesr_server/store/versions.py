"""Which version a store is of, and the steps by which an older one is brought up to date.

The version stands in a table of the store's own. A step is done, then the version is written: a process that dies in
between does that step once more when it starts again, and none before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from ..errors import ServiceError
from .database import Database, new_session
from .schemas import key_field
from .tables import Table

if TYPE_CHECKING:
    from .catalogs import Store

FIRST = 1  # the version that the oldest store there is has
_MARKER = "dmesr_store"
_SCHEMA = pa.schema([key_field("name"), pa.field("schema_version", pa.int32(), nullable=False)])


@dataclass(frozen=True)
class Step:
    """What leads from one version to the next.

    Attributes:
        what: What is done, for the log.
        act: Does it, given the store and the names of its catalogs. It may be done again, over what it has left half
            done, and by two processes at once where a lease was lost: it must end the same.
    """

    what: str
    act: Callable[[Store, Sequence[str]], None]


#: The first one leads from version `FIRST` to the next, and so on. Steps are appended, never changed or taken out: a
#: store of any age goes through all that it lacks. There is none yet.
STEPS: tuple[Step, ...] = ()

#: The version that this server writes.
SCHEMA_VERSION = FIRST + len(STEPS)


def version_of(database: Database, *, newest: int, missing: str | None) -> int:
    """The version of a store; one that is not there yet is made and is of the newest.

    Args:
        database: The store's own, above those of its catalogs.
        newest: The newest version that is known here.
        missing: Words for a store that is not there, which is not made then.

    Raises:
        ServiceError: STORE_UNAVAILABLE when a newer version of the server made it, or its version is lost.
    """
    found = _recorded(database)
    if found is None and missing is not None:
        raise ServiceError("STORE_UNAVAILABLE", f"there is no store at {database.uri}{missing}", uri=database.uri)
    if found is None and "://" not in database.uri and any(Path(database.uri).glob("catalogs/*")):
        found = _recorded(database)  # another process may have made both meanwhile
        if found is None:
            raise ServiceError(
                "STORE_UNAVAILABLE",
                f"the store at {database.uri} has catalogs, but the table {_MARKER} that tells its version is gone: "
                "put the folder back, or restore the store from a snapshot",
                uri=database.uri,
            )
    if found is None:
        record(database, newest, replace=False)
        found = _recorded(database) or newest
    if found > newest:
        raise ServiceError(
            "STORE_UNAVAILABLE",
            f"the store at {database.uri} was made by a newer version of this server (schema {found}, this server "
            f"knows up to {newest}): upgrade the server, or point store.uri to another folder",
            uri=database.uri,
            expected=newest,
            actual=found,
        )
    return found


def record(database: Database, version: int, *, replace: bool = True) -> None:
    """Writes down which version a store is of.

    Args:
        database: The store's own.
        version: The version.
        replace: False leaves what another process has written down.
    """
    _marker(database).merge(
        pa.table([pa.array(["schema"]), pa.array([version], pa.int32())], schema=_SCHEMA), update=replace
    )


def mark_version(folder: Path, version: int) -> None:
    """Says of a folder, where the tables of a store are about to be put, which version they are of.

    Raises:
        ServiceError: STORE_FULL or STORE_UNAVAILABLE.
    """
    record(Database(uri=str(folder), session=new_session()), version)


def older(uri: str, *, found: int, expected: int, remedy: str) -> ServiceError:
    """What is said of a store that somebody must bring up to date first."""
    return ServiceError(
        "STORE_UNAVAILABLE",
        f"the store at {uri} was made by an older version of this server (schema {found}, this server works with "
        f"{expected}): {remedy}",
        uri=uri,
        expected=expected,
        actual=found,
    )


def _recorded(database: Database) -> int | None:
    versions = _marker(database).select(["schema_version"])["schema_version"].to_pylist()
    return max(versions) if versions else None


def _marker(database: Database) -> Table:
    return Table(database=database, name=_MARKER, schema=_SCHEMA, indexed=[])
