"""The control database as one object."""

from __future__ import annotations

from .catalogs import Catalogs
from .database import Database
from .jobs import Jobs
from .leases import Leases
from .models import Aliases, Models
from .pins import Pins
from .recipes import Recipes
from .splits import Splits


class Control:
    """Catalogs, recipes, jobs, leases, models, aliases, splits, pins. Safe for any thread; processes may share one."""

    def __init__(self, url: str):
        """Prepares connections; call :meth:`migrate` before anything else.

        Args:
            url: An SQLAlchemy URL, for instance "sqlite:////var/lib/dmesr/control.sqlite".

        Raises:
            ServiceError: STORE_UNAVAILABLE when the URL cannot be used.
        """
        self._database = Database(url=url)
        self.catalogs = Catalogs(database=self._database)
        self.recipes = Recipes(database=self._database)
        self.jobs = Jobs(database=self._database)
        self.leases = Leases(database=self._database)
        self.models = Models(database=self._database)
        self.aliases = Aliases(database=self._database)
        self.splits = Splits(database=self._database)
        self.pins = Pins(database=self._database)

    def migrate(self) -> None:
        """Brings the tables to this version of the server.

        Raises:
            ServiceError: STORE_UNAVAILABLE when it cannot be reached or a newer version of the server made it.
        """
        self._database.migrate()

    def close(self) -> None:
        """Closes every connection."""
        self._database.close()
