"""Describers: whatever turns an item into texts by the routes of the paper. One file each."""

from __future__ import annotations

import importlib
import logging
from typing import Any

from dmesr_server.config import EnrichmentConfig
from dmesr_server.errors import ServiceError

from . import auto
from .base import (
    Describer,
    DescribeRequest,
    DescriptionFailure,
    DescriptionResult,
    PromptTurn,
    ShowsPrompts,
    Window,
)
from .imported import NAME as IMPORT
from .imported import ImportedDescriber
from .palette import PaletteDescriber

# Describers that ask a multimodal LLM, and the engine behind each: imported only when it is asked for.
_ENGINES = {
    "vllm": ("vllm", "VllmEngine"),
    "transformers": ("transformers", "TransformersEngine"),
    "openai": ("openai", "OpenaiEngine"),
}

#: Names that a job may ask for.
NAMES = (auto.NAME, *_ENGINES, "palette", IMPORT)

#: Those of them that ask by prompts.
WITH_PROMPTS = tuple(_ENGINES)

_LOG = logging.getLogger(__name__)


def create(name: str, config: EnrichmentConfig) -> Describer:
    """Makes a describer; loads nothing yet.

    Args:
        name: As in the configuration. The describer "import" comes from a recipe instead (:class:`ImportedDescriber`).
        config: Its settings.

    Raises:
        ServiceError: DESCRIBER_UNAVAILABLE.
    """
    if name == auto.NAME:
        choice = auto.choose()
        _LOG.info("the describer auto means %s: %s", choice.describer, choice.why)
        name = choice.describer
    if name == "palette":
        return PaletteDescriber(workers=config.picture_workers)
    if name in _ENGINES:
        return _mllm(name, config)
    raise ServiceError(
        "DESCRIBER_UNAVAILABLE",
        f"there is no describer {name!r:.100}; choose one of {', '.join(NAMES)}",
        describer=name[:100],
        known=", ".join(NAMES),
    )


def _mllm(name: str, config: EnrichmentConfig) -> Describer:
    from .mllm import MllmDescriber

    module, engine = _ENGINES[name]
    made: Any = getattr(importlib.import_module(f"dmesr_server.enrichment.engines.{module}"), engine)
    return MllmDescriber(made(config), config.mllm)


__all__ = [
    "IMPORT",
    "NAMES",
    "WITH_PROMPTS",
    "DescribeRequest",
    "Describer",
    "DescriptionFailure",
    "DescriptionResult",
    "ImportedDescriber",
    "PaletteDescriber",
    "PromptTurn",
    "ShowsPrompts",
    "Window",
    "create",
]
