"""A real PostgreSQL of the tests' own: Debian's package, a fresh cluster in a folder, reached by a socket in it."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import sqlalchemy as sa

_DEBIAN = Path("/usr/lib/postgresql")


def programs() -> Path | None:
    """Where initdb and postgres are; None where there are none."""
    found = sorted(_DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


class Cluster:
    """A server process with its data. It refuses to run as root, so root starts it as the package's own user."""

    def __init__(self, programs: Path):
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="dmesr-postgresql-"))  # short: a socket's path may have 107 bytes
        self._user: str | None = None
        if os.geteuid() == 0:
            self._user = "postgres"
            os.chown(self._folder, pwd.getpwnam(self._user).pw_uid, -1)
        self._names = (f"dmesr_{number}" for number in itertools.count())
        self._process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "--auth=trust", "--username=dmesr", "--encoding=UTF8", "--no-sync", "-D", self._data)

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments], user=self._user, cwd=self._folder, check=True, capture_output=True
        )

    def url(self, database: str) -> str:
        """The address of a database."""
        return f"postgresql://dmesr@/{database}?host={self._folder}"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        command = [self._programs / "postgres", "-D", self._data, "-k", self._folder, "-c", "listen_addresses="]
        # As a crash of the machine is none of what is tested here.
        command += ["-c", "fsync=off", "-c", "max_connections=200"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, user=self._user, cwd=self._folder, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                with self._administration() as connection:
                    connection.execute(sa.text("SELECT 1"))
                return
            except sa.exc.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self._folder / "log").read_text()) from None
                time.sleep(0.1)

    def stop(self) -> None:
        """Ends it at once, as `pg_ctl stop -m immediate` does: every connection is cut."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(30)

    def new_database(self) -> str:
        """Makes an empty database; its address."""
        name = next(self._names)
        with self._administration() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        return self.url(name)

    def remove(self) -> None:
        """Takes everything away."""
        if self._process is not None and self._process.poll() is None:
            self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _administration(self) -> sa.Connection:
        return opened(self.url("postgres")).execution_options(isolation_level="AUTOCOMMIT")


def opened(url: str) -> sa.Connection:
    """A connection of the test's own to a database."""
    driver = sa.make_url(url).set(drivername="postgresql+psycopg")
    return sa.create_engine(driver, poolclass=sa.NullPool).connect()
