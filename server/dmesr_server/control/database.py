"""The connection to the control database: transactions, migrations, and what a fault is called."""

from __future__ import annotations

import contextlib
import re
import sqlite3
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
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _set_up_reader if read_only else _set_up_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One consistent view.

        Raises:
            ServiceError: STORE_UNAVAILABLE.
        """
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
        with self._translated(), self._writer.begin() as connection:
            yield connection

    def close(self) -> None:
        """Closes every connection."""
        self._engine.dispose()

    def migrate(self) -> None:
        """Brings the tables to this version of the server.

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
                config.attributes["connection"] = connection
                alembic.command.upgrade(config, "head")

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
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("dmesr_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
