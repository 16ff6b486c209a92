"""What the servicers are given: the parts below them, chosen in `app`."""

from __future__ import annotations

from dataclasses import dataclass

from dmesr_server.api.auto_enrichment import AutoEnrichment
from dmesr_server.api.credentials import TokenBook
from dmesr_server.api.grouping import Room
from dmesr_server.api.validation import catalog_name
from dmesr_server.config import Config
from dmesr_server.control import CatalogRow, Control
from dmesr_server.pictures.decoders import Decoders
from dmesr_server.pictures.fetching import Fetcher
from dmesr_server.serving.live import LiveModels
from dmesr_server.serving.loop import ServingLoop
from dmesr_server.serving.neighbours import Neighbours
from dmesr_server.serving.query_encoding import QueryEncoder
from dmesr_server.store import CatalogStore, Store
from dmesr_server.upkeep.housekeeper import Housekeeper


@dataclass(frozen=True)
class Parts:
    """The parts of one API process.

    Attributes:
        worker: Which of the workers at one port it is, from 0.
        keeps_house: Whether it does what one of them does for all: adapting, indexes, tidying.
    """

    config: Config
    store: Store
    control: Control
    live: LiveModels
    serving: ServingLoop
    auto_enrichment: AutoEnrichment
    neighbours: Neighbours
    query_encoder: QueryEncoder
    decoders: Decoders
    fetcher: Fetcher
    housekeeper: Housekeeper
    tokens: TokenBook
    upload_room: Room
    worker: int
    keeps_house: bool

    def catalog(self, name: str) -> tuple[CatalogRow, CatalogStore]:
        """The catalog that a request names.

        Raises:
            ServiceError: CATALOG_NOT_FOUND.
        """
        row = self.control.catalogs.get(catalog_name(name))
        return row, self.store.catalog(row.name)
