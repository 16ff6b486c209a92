"""The control database as one object."""

from __future__ import annotations

from pathlib import Path

from . import records, schema
from .aliases import Aliases
from .audit import Audit
from .catalogs import Catalogs
from .database import Database, now
from .jobs import Jobs
from .leases import Leases
from .lineage import Lineage
from .models import Models
from .pins import Pins
from .recipes import Recipes
from .records import Records
from .splits import Splits
from .tokens import Tokens


class Control:
    """Catalogs, recipes, jobs, leases, models, aliases, splits, pins, tokens, audit. Shared by threads, processes."""

    def __init__(self, url: str, *, read_only: bool = False):
        """Prepares connections; call :meth:`migrate` before anything else.

        Args:
            url: An SQLAlchemy URL, for instance "sqlite:////var/lib/dmesr/control.sqlite".
            read_only: Write nothing.

        Raises:
            ServiceError: STORE_UNAVAILABLE when the URL cannot be used.
        """
        self._database = Database(url=url, read_only=read_only)
        self.catalogs = Catalogs(database=self._database)
        self.recipes = Recipes(database=self._database)
        self.jobs = Jobs(database=self._database)
        self.leases = Leases(database=self._database)
        self.models = Models(database=self._database)
        self.aliases = Aliases(database=self._database)
        self.lineage = Lineage(database=self._database)
        self.splits = Splits(database=self._database)
        self.pins = Pins(database=self._database)
        self.tokens = Tokens(database=self._database)
        self.audit = Audit(database=self._database)

    def migrate(self, *, keep_old: bool = True) -> None:
        """Brings the tables to this version of the server.

        Args:
            keep_old: Copy an SQLite file that is of an older version beside it first.

        Raises:
            ServiceError: STORE_UNAVAILABLE when it cannot be reached or a newer version of the server made it.
        """
        self._database.migrate(keep_old=keep_old)

    @property
    def folder(self) -> Path | None:
        """The folder of its file; None where it is another one's database, or read only."""
        return self._database.folder

    def check(self) -> None:
        """Sees that it can be read as it is now, not as connections remember it.

        Raises:
            ServiceError: STORE_UNAVAILABLE.
        """
        self._database.check()

    def records(self) -> Records:
        """Everything that points to something, as it stands at one moment.

        Raises:
            ServiceError: STORE_UNAVAILABLE.
        """
        return records.read(self._database)

    def integrity(self) -> list[str]:
        """What SQLite finds wrong with its file; nothing where all is well, or it is no SQLite file.

        Raises:
            ServiceError: STORE_UNAVAILABLE.
        """
        return records.integrity(self._database)

    def copy(self, file: Path) -> None:
        """Copies all of it into an SQLite file, as it stands at one moment.

        Raises:
            ServiceError: SNAPSHOT_REFUSED where it is no SQLite file; STORE_FULL or STORE_UNAVAILABLE.
        """
        self._database.copy(file)

    def moved(self, artefacts: Path) -> None:
        """Makes a copy ready for another place: models are found under that folder, and nobody holds a lease.

        Args:
            artefacts: The folder of the models' files there.
        """
        with self._database.write() as connection:
            for row in connection.execute(schema.models.select()).mappings().all():
                path = artefacts / row["catalog"] / row["name"] / str(row["version"])
                of_it = schema.models.c.number == row["number"]
                connection.execute(schema.models.update().where(of_it).values(artefact_path=str(path)))
            connection.execute(schema.leases.update().values(owner=None, expires=now()))

    def close(self) -> None:
        """Closes every connection."""
        self._database.close()
