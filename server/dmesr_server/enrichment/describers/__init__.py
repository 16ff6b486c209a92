"""Describers: whatever turns an item into texts by the routes of the paper. One file each."""

from __future__ import annotations

from dmesr_server.config import EnrichmentConfig
from dmesr_server.errors import ServiceError

from .base import Describer, DescribeRequest, DescriptionFailure, DescriptionResult, Window
from .imported import NAME as IMPORT
from .imported import ImportedDescriber
from .palette import PaletteDescriber

#: Names that a job may ask for.
NAMES = ("palette", IMPORT)


def create(name: str, config: EnrichmentConfig) -> Describer:
    """Makes a describer; loads nothing yet.

    Args:
        name: As in the configuration. The describer "import" comes from a recipe instead (:class:`ImportedDescriber`).
        config: Its settings.

    Raises:
        ServiceError: DESCRIBER_UNAVAILABLE.
    """
    if name == "palette":
        return PaletteDescriber(workers=config.picture_workers)
    raise ServiceError(
        "DESCRIBER_UNAVAILABLE",
        f"there is no describer {name!r:.100}; choose one of {', '.join(NAMES)}",
        describer=name[:100],
        known=", ".join(NAMES),
    )


__all__ = [
    "IMPORT",
    "NAMES",
    "DescribeRequest",
    "Describer",
    "DescriptionFailure",
    "DescriptionResult",
    "ImportedDescriber",
    "PaletteDescriber",
    "Window",
    "create",
]
