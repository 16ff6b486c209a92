"""One LanceDB database: its connection, what may stand in its SQL, and what its faults are called."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb

from ..errors import ServiceError

INDEX_CACHE_BYTES = 512 << 20  # the BTREE of a million ids takes some tens of megabytes
METADATA_CACHE_BYTES = 64 << 20  # mostly of versions that are past: with 256 a process grew by that under small writes

#: What it says of files that are cut short, overwritten or gone.
_DAMAGE = re.compile(
    r"failed to fill whole buffer|corrupt|file size is too small|for object of size|magic|Not found: \S+\.lance",
    re.IGNORECASE,
)
#: And of folders that may not be written to.
_FORBIDDEN = re.compile(r"Permission denied|Operation not permitted|Read-only file system", re.IGNORECASE)


def encoded(name: str) -> str:
    """A name as lower-case letters, digits and "_" only, one for one: safe in SQL, paths and on any file system."""
    return "".join(
        character if character in "abcdefghijklmnopqrstuvwxyz0123456789" else f"_{byte:02x}"
        for character, byte in ((chr(byte), byte) for byte in name.encode())
    )


def decoded(name: str) -> str:
    """The name behind :func:`encoded`."""
    return re.sub(rb"_([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), name.encode()).decode()


def literal(text: str) -> str:
    """A text as an SQL literal. Doubling the quote is all that the dialect asks for."""
    return "'" + text.replace("'", "''") + "'"


def is_in(column: str, values: Sequence[str]) -> str:
    """An SQL condition: the column is one of the values."""
    return f"{column} IN ({','.join(map(literal, values))})"


def span(column: str, values: Sequence[str]) -> str:
    """An SQL condition: the column is between the least and the greatest of the values, these among them."""
    return f"{column} >= {literal(min(values))} AND {column} <= {literal(max(values))}"


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turns faults of LanceDB and of the disk into ServiceError.

    Raises:
        ServiceError: STORE_FULL when the disk is full, STORE_UNAVAILABLE for anything else.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise service_error(what, error) from error
    except ValueError as error:
        if not is_gone(error):
            raise
        raise service_error(what, error) from error


def service_error(what: str, error: Exception) -> ServiceError:
    """What a fault of LanceDB is called."""
    text = str(error)
    if re.search(r"No space left on device|os error 28\b|Disk quota exceeded|os error 122\b", text):
        return ServiceError(
            "STORE_FULL",
            f"the disk under the store is full: {what} was not done and nothing of it was written; "
            "free some space, then send it again",
            operation=what,
        )
    cause = re.sub(r",? /\S*(?:\.cargo|/rustc|library/core)/?\S*", "", text).strip()
    remedy = "see that it can be reached"
    if _DAMAGE.search(text):
        remedy = "a file is damaged or missing: `dmesr-cli store check` says which; restore the store from a snapshot"
    elif _FORBIDDEN.search(text):
        remedy = "let the server write there"
    return ServiceError("STORE_UNAVAILABLE", f"the store failed at {what}: {cause}; {remedy}", operation=what)


def is_gone(error: Exception) -> bool:
    """Whether the table is not there."""
    text = str(error)
    return "was not found" in text or ("Not found" in text and "_versions" in text)


def is_conflict(error: Exception) -> bool:
    """Whether another writer was quicker, so that trying again helps."""
    return bool(re.search(r"conflict|concurrent writers|Retryable|preempted", str(error), re.IGNORECASE))


def new_session() -> lancedb.Session:
    """Caches of a bounded size; LanceDB's own bounds are several gigabytes."""
    return lancedb.Session(index_cache_size_bytes=INDEX_CACHE_BYTES, metadata_cache_size_bytes=METADATA_CACHE_BYTES)


class Database:
    """One LanceDB database: the tables of one catalog."""

    def __init__(
        self,
        *,
        uri: str,
        session: lancedb.Session,
        keep_versions: timedelta | None = None,
        tidied: bool = False,
        one_host: bool = True,
        read_only: bool = False,
    ):
        """Opens the database.

        Args:
            uri: A folder (made when it is first written to) or any URI of `lancedb.connect`.
            session: Holds the caches; databases of one store share them.
            keep_versions: How long a reader may take over an unpinned version; the usual when None.
            tidied: Somebody looks after the tables in the background, so that writers need not.
            one_host: All that write are processes of one machine.
            read_only: Write nothing; opening a folder that is not there makes none.
        """
        self.uri = uri
        self.read_only = read_only
        self._session = session
        self._connection: Any = None
        self.keep_versions = keep_versions
        self.tidied = tidied
        self._one_host = one_host
        if not read_only:
            self.connection  # noqa: B018 - a fault is told now

    @property
    def connection(self) -> Any:
        """LanceDB's connection.

        Raises:
            ServiceError: STORE_UNAVAILABLE.
            ValueError: The database is read only and not there: its tables were not found.
        """
        if self._connection is None:
            if self.missing:
                raise ValueError(f"the database {self.uri} was not found")
            with translated(f"opening {self.uri}"):
                # Zero: every read asks for the newest version, so other processes' writes are seen at once.
                self._connection = lancedb.connect(
                    self.uri, read_consistency_interval=timedelta(0), session=self._session
                )
        return self._connection

    @property
    def missing(self) -> bool:
        """Whether it is read only and there is no folder of it yet."""
        return self.read_only and "://" not in self.uri and not Path(self.uri).is_dir()

    async def opened(self, name: str, version: int) -> Any:
        """One version of a table, as LanceDB's asynchronous API has it. It may raise what LanceDB does."""
        connection = await lancedb.connect_async(self.uri, session=self._session)
        handle = await connection.open_table(name)
        await handle.checkout(version)
        return handle

    def names(self) -> list[str]:
        """Names of the tables, sorted."""
        names: list[str] = []
        if self.missing:
            return names
        with translated("listing the tables"):
            token: str | None = None
            while True:
                page = self.connection.list_tables(page_token=token, limit=1_000)
                names += page.tables
                token = page.page_token
                if not token:
                    return sorted(names)

    def drop(self, name: str) -> None:
        """Drops a table; nothing happens when there is none."""
        with translated(f"dropping the table {name}"):
            self.connection.drop_table(name, ignore_missing=True)

    def folder(self, name: str) -> Path | None:
        """The folder of a table, or None where the database is remote."""
        return None if "://" in self.uri else Path(self.uri) / f"{name}.lance"

    def own_folder(self, name: str) -> Path | None:
        """The folder of a table; None where a process of another machine may write to it."""
        return None if self.read_only or not self._one_host else self.folder(name)

    def line_file(self, name: str) -> Path | None:
        """The file by which the writers of a table keep apart; None where that is not certain to reach all of them."""
        folder = self.own_folder(name)
        return None if folder is None else folder.with_name(f".{name}.lock")

    def refuse_ruined(self, name: str) -> None:
        """Sees that a table without manifests is none: to begin one anew over rows that lost theirs would bury them.

        Raises:
            ServiceError: STORE_UNAVAILABLE.
        """
        folder = self.folder(name)
        # The manifests are looked at last: another process may be making the table just now.
        if (
            folder is not None
            and any((folder / "data").glob("*"))
            and not any((folder / "_versions").glob("*.manifest"))
        ):
            raise ServiceError(
                "STORE_UNAVAILABLE",
                f"the table {name} of {self.uri} has rows in {folder / 'data'}, but no version in "
                f"{folder / '_versions'} that names them: they are lost; restore the store from a snapshot",
                table=name,
            )
