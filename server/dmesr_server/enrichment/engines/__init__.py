"""Engines: whatever runs a multimodal LLM. One file each; see `base.py` for what the describer asks of them."""

from __future__ import annotations

from .base import (
    Engine,
    EngineDown,
    EngineError,
    Generation,
    PictureRejected,
    PromptTooLong,
    RequestFailed,
    Sampling,
    TokenCount,
    Turn,
)

__all__ = [
    "Engine",
    "EngineDown",
    "EngineError",
    "Generation",
    "PictureRejected",
    "PromptTooLong",
    "RequestFailed",
    "Sampling",
    "TokenCount",
    "Turn",
]
