"""Encoders: whatever turns a text into a vector. One file each."""

from __future__ import annotations

from dmesr_server.config import EncoderConfig
from dmesr_server.errors import ServiceError

from .base import Encoder
from .sentence_transformers import NAME as SENTENCE_TRANSFORMERS
from .sentence_transformers import SentenceTransformersEncoder

OPENAI = "openai"

#: Kinds of encoders.
KINDS = (SENTENCE_TRANSFORMERS, OPENAI)


def chosen(name: str, config: EncoderConfig) -> EncoderConfig:
    """The settings for the encoder that a job asks for.

    Args:
        name: A model, or a kind and a model as "openai:text-embedding-3-small"; empty takes the configured one.
        config: The server's encoder.
    """
    if not name:
        return config
    kind, _, model = name.partition(":")
    if kind in KINDS and model:
        return config.model_copy(update={"kind": kind, "model": model})
    return config.model_copy(update={"model": name})


def create(config: EncoderConfig) -> Encoder:
    """Makes an encoder; loads nothing yet.

    Raises:
        ServiceError: ENCODER_UNAVAILABLE.
    """
    if config.kind == SENTENCE_TRANSFORMERS:
        return SentenceTransformersEncoder(config)
    if config.kind == OPENAI:
        from .openai import OpenaiEncoder  # brings an HTTP client that others do not need

        return OpenaiEncoder(config)
    raise ServiceError(
        "ENCODER_UNAVAILABLE",
        f"there is no encoder of the kind {config.kind!r}; choose one of {', '.join(KINDS)}",
        encoder=config.kind,
        known=", ".join(KINDS),
    )


__all__ = ["KINDS", "Encoder", "SentenceTransformersEncoder", "chosen", "create"]
