"""The enricher's own process with one more describer, which takes no time and no memory."""

from __future__ import annotations

import logging
import os

from dmesr_server import enricher
from dmesr_server.config import EnrichmentConfig
from dmesr_server.enrichment import describers
from dmesr_server.enrichment.describers import Describer

from .null import NullDescriber

NAME = NullDescriber.name


def register() -> None:
    """Makes the null describer known in this process."""
    known = describers.create

    def create(name: str, config: EnrichmentConfig) -> Describer:
        return NullDescriber() if name == NAME else known(name, config)

    describers.create = create


if __name__ == "__main__":
    register()
    code = enricher.main()
    logging.shutdown()
    os._exit(code)
