"""The connection to the control database: transactions, migrations, and what a fault is called."""

from __future__ import annotations

import contextlib
import logging
import re
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import alembic.command
import alembic.config
import alembic.util
import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from ..errors import ServiceError
from . import schema

_LOG = logging.getLogger(__name__)
BUSY_SECONDS = 30  # how long a writer stands in line for SQLite's one write lock
POOL_SIZE = 16  # connections kept open
POOL_OVERFLOW = 48  # more when many threads call at once
_MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 0x444D_4553  # "DMES": PostgreSQL's advisory lock while migrating


def now() -> datetime:
    """The moment, in UTC. Hosts that share a database must keep their clocks within a lease's length of each other."""
    return datetime.now(UTC)


class Database:
    """The control database. Safe for any thread; several processes may share it."""

    def __init__(self, *, url: str, read_only: bool = False):
        """Prepares connections; nothing is read or written yet.

        Args:
            url: An SQLAlchemy URL. The folder of a SQLite file is made when it is not there.
            read_only: Write nothing, not even what a database's own files note of their readers.

        Raises:
            ServiceError: STORE_UNAVAILABLE when the URL cannot be used.
        """
        self.read_only = read_only
        try:
            parsed = sa.make_url(url)
            if parsed.drivername in ("postgresql", "postgres"):  # without a driver in the name: the one that we install
                parsed = parsed.set(drivername="postgresql+psycopg")
            self.shown_url = parsed.render_as_string(hide_password=True)
            if parsed.get_backend_name() == "sqlite":
                if not parsed.database or parsed.database == ":memory:":
                    raise ServiceError(
                        "STORE_UNAVAILABLE",
                        f"the control database {self.shown_url} is no file: processes could not share it; name a file",
                    )
                if not read_only:
                    Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            self._engine = _read_only_engine(parsed) if read_only else _engine(parsed)
        except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ImportError, OSError) as error:
            remedy = "see store.control_url"
            if isinstance(error, ModuleNotFoundError) and error.name == "psycopg":
                remedy = "install PostgreSQL's driver: pip install 'dmesr[postgres]'"
            raise ServiceError(
                "STORE_UNAVAILABLE", f"the control database cannot be used: {error}; {remedy}"
            ) from error
        self._writer = self._engine.execution_options(dmesr_write=True)
        self._looker = self._engine
        self._file: Path | None = None
        self._file_id: tuple[int, int] | None = None  # device and inode of the file that the connections hold
        if self._engine.dialect.name == "sqlite":
            if not read_only and parsed.database and not parsed.database.startswith("file:"):
                self._file = Path(parsed.database).absolute()
            if not read_only:
                self._looker = sa.create_engine(parsed, poolclass=sa.NullPool)
            for engine in {self._engine, self._looker}:
                if self._file is not None:
                    sa.event.listen(engine, "do_connect", self._name_file)
                sa.event.listen(engine, "connect", _set_up_reader if read_only else self._set_up_writer)
                sa.event.listen(engine, "begin", _begin_sqlite)

    @property
    def folder(self) -> Path | None:
        """The folder of its file; None where it is no SQLite file, or only read."""
        return None if self._file is None else self._file.parent

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One consistent view.

        Raises:
            ServiceError: STORE_UNAVAILABLE.
        """
        self._see_file()
        with self._translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction, committed at the end and undone by any exception.

        Raises:
            ServiceError: STORE_FULL, STORE_UNAVAILABLE or READ_ONLY; nothing was written.
        """
        if self.read_only:
            raise read_only_refusal()
        self._see_file()
        with self._translated(), self._writer.begin() as connection:
            yield connection

    def check(self) -> None:
        """Sees that the database can be read as it is now.

        SQLite's open connections answer from the pages that they remember until another writer tells them of a change,
        and nobody tells of a file that was damaged: so this reads by a connection that remembers nothing.

        Raises:
            ServiceError: STORE_UNAVAILABLE.
        """
        self._see_file()
        with self._translated(), self._looker.begin() as connection:
            connection.execute(sa.select(schema.catalogs.c.name)).all()

    def close(self) -> None:
        """Closes every connection."""
        self._engine.dispose()

    def migrate(self, *, keep_old: bool = True) -> None:
        """Brings the tables to this version of the server.

        Args:
            keep_old: Copy an SQLite file that is of an older version beside it first.

        Raises:
            ServiceError: STORE_UNAVAILABLE when a newer version of the server made them.
        """
        config = alembic.config.Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        with self.read() if self.read_only else self.write() as connection:
            if connection.dialect.name == "postgresql" and not self.read_only:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            script = ScriptDirectory.from_config(config)
            current = MigrationContext.configure(connection).get_current_revision()
            known = {revision.revision for revision in script.walk_revisions()}
            if current is not None and current not in known:
                raise ServiceError(
                    "STORE_UNAVAILABLE",
                    f"the control database {self.shown_url} was made by a newer version of this server (revision "
                    f"{current}, this server knows up to {script.get_current_head()}): upgrade the server, or point "
                    "store.control_url to another database",
                    actual=current,
                    expected=script.get_current_head(),
                )
            if current != script.get_current_head() and self.read_only:
                raise ServiceError(
                    "STORE_UNAVAILABLE",
                    f"the control database {self.shown_url} was made by an older version of this server (revision "
                    f"{current}, expected {script.get_current_head()}), and a read-only server changes nothing: start "
                    "the writing server of this version first",
                    actual=current,
                    expected=script.get_current_head(),
                )
            if current != script.get_current_head():
                kept = self._keep_old(current) if keep_old and current is not None else None
                config.attributes["connection"] = connection
                alembic.command.upgrade(config, "head")
                if keep_old and current is not None:
                    _LOG.warning(
                        "the control database %s was made by an older version of this server and is brought from "
                        "revision %s to %s; an older server cannot read it any more. %s",
                        self.shown_url,
                        current,
                        script.get_current_head(),
                        f"As it was it is kept in {kept}" if kept else "The way back is a copy made before (pg_dump)",
                    )

    def _keep_old(self, revision: str) -> Path | None:
        """Copies an SQLite file as it is before it is migrated; None where it is no SQLite file."""
        if self._file is None:
            return None
        kept = self._file.with_name(f"{self._file.name}.{revision}")
        unfinished = kept.with_name(f".{kept.name}.{uuid.uuid4().hex}")
        try:
            with (
                contextlib.closing(sqlite3.connect(self._file)) as source,
                contextlib.closing(sqlite3.connect(unfinished)) as copy,
            ):
                source.backup(copy)  # what is committed: the migration's own transaction is another connection's
                copy.execute("PRAGMA journal_mode = DELETE")
            unfinished.replace(kept)
        except (sqlite3.Error, OSError) as error:
            raise ServiceError(
                "STORE_UNAVAILABLE",
                f"the control database {self.shown_url} was made by an older version of this server (revision "
                f"{revision}) and cannot be copied to {kept} before it is migrated ({error}): nothing was changed; "
                "free some space or let the server write there",
                actual=revision,
            ) from error
        finally:
            unfinished.unlink(missing_ok=True)
        return kept

    def copy(self, file: Path) -> None:
        """Copies the database into a file, as it stands at one moment, while others write.

        Raises:
            ServiceError: SNAPSHOT_REFUSED where it is no SQLite file; STORE_FULL or STORE_UNAVAILABLE.
        """
        if self._engine.dialect.name != "sqlite":
            raise ServiceError(
                "SNAPSHOT_REFUSED",
                f"the control database {self.shown_url} is no SQLite file: copy it by its own means (pg_dump), right "
                "before the folder of the store",
            )
        with self.read() as connection, contextlib.closing(sqlite3.connect(file)) as copy:
            source: Any = connection.connection.driver_connection
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")  # one file: nothing of it stays in a log beside it

    def _see_file(self) -> None:
        """Sees that the path still names the file that is open: what is written to another one would be lost.

        Only asks the system for its number. To open and close the file here would drop SQLite's locks on it, which
        belong to the process.
        """
        if self._file is None or self._file_id is None:
            return
        try:
            found = self._file.stat()
        except OSError as error:
            raise self._unavailable(f"its file cannot be found: {error.strerror}") from error
        if (found.st_dev, found.st_ino) != self._file_id:
            raise ServiceError(
                "STORE_UNAVAILABLE",
                f"the file of the control database {self.shown_url} has been replaced by another one while this "
                "process had it open: restart the server",
            )

    def _name_file(self, _dialect: Any, _record: Any, arguments: list[Any], parameters: dict[str, Any]) -> None:
        """Lets only the first connection make the file: after that, one that is gone must not come back empty."""
        mode = "rwc" if self._file_id is None else "rw"
        arguments[0] = f"file:{quote(str(self._file))}?mode={mode}"
        parameters["uri"] = True

    def _set_up_writer(self, connection: Any, record: Any) -> None:
        self._see_file()
        _set_up_sqlite(connection, record)
        if self._file is not None and self._file_id is None:
            found = self._file.stat()
            self._file_id = (found.st_dev, found.st_ino)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            text = str(error.orig)
            if re.search(r"disk is full|No space left on device|could not extend file", text):
                raise ServiceError(
                    "STORE_FULL",
                    f"the disk under the control database {self.shown_url} is full: nothing was written; "
                    "free some space, then try again",
                ) from error
            if isinstance(error, sa.exc.IntegrityError | sa.exc.ProgrammingError | sa.exc.DataError):
                raise  # for the caller to make sense of
            raise self._unavailable(text) from error
        except sa.exc.TimeoutError as error:
            raise self._unavailable(str(error)) from error

    def _unavailable(self, cause: str) -> ServiceError:
        return ServiceError(
            "STORE_UNAVAILABLE", f"the control database {self.shown_url} failed: {cause}; see that it can be reached"
        )


def read_only_refusal() -> ServiceError:
    """What a read-only server says to whoever wants to write."""
    return ServiceError(
        "READ_ONLY", "this server is a read-only replica: send writes to the server that it follows, on the same store"
    )


def _engine(url: sa.URL) -> sa.Engine:
    return sa.create_engine(url, pool_size=POOL_SIZE, max_overflow=POOL_OVERFLOW)


def _read_only_engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() == "postgresql":
        options = {"options": "-c default_transaction_read_only=on"}
        return sa.create_engine(url, pool_size=POOL_SIZE, max_overflow=POOL_OVERFLOW, connect_args=options)
    if url.get_backend_name() != "sqlite" or url.database is None:
        return _engine(url)
    file = Path(url.database).expanduser().resolve()

    def connect() -> sqlite3.Connection:
        if not file.exists():
            raise sqlite3.OperationalError(f"there is no file {file}: start the writing server first")
        # While a server has the file open, its newest content is in the log beside it; readers then note themselves in
        # a third file, unless told not to. Otherwise the file is all there is, and opening it in the usual way would
        # make the other two.
        logged = all(file.with_name(file.name + suffix).exists() for suffix in ("-wal", "-shm"))
        how = "mode=ro&readonly_shm=1" if logged else "immutable=1"
        return sqlite3.connect(f"file:{quote(str(file))}?{how}", uri=True, check_same_thread=False)

    # A new connection each time: whether a server has the file open is true for a moment only.
    return sa.create_engine(url, creator=connect, poolclass=sa.NullPool)


def _set_up_reader(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    cursor.close()


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    # The driver must not begin transactions by itself: it would begin them without the write lock, and a
    # transaction that reads first and then writes fails at once, without waiting, when another wrote in between.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    _write_ahead(cursor)
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()


def _write_ahead(cursor: sqlite3.Cursor) -> None:
    """Gives the file a write-ahead log.

    Of several that open a new file at once, all but one are told at once that it is locked: SQLite does not stand in
    line here, whatever its busy_timeout.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("dmesr_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
