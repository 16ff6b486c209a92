"""Encodes texts that people search for, for the API processes of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dmesr_server.config import EnrichmentConfig
from dmesr_server.encoding_socket import ADDRESS_PREFIX, receive, send
from dmesr_server.errors import ServiceError

from . import encoders
from .encoders import Encoder

_LOG = logging.getLogger(__name__)


class QueryService:
    """Listens at a Unix socket while its enricher lives."""

    def __init__(self, *, config: EnrichmentConfig, folder: Path, name: str, lent: Callable[[], Encoder | None]):
        """Makes it; listens to nobody yet.

        Args:
            config: The encoder that is tried first, and the settings for any other.
            folder: Where the address is left.
            name: Tells this enricher from others.
            lent: The encoder of the job in hand, where there is one: a model is not loaded twice.
        """
        self._config = config
        self._address = folder / f"{ADDRESS_PREFIX}{name}"
        self._lent = lent
        self._own: dict[str, Encoder] = {}
        self._choosing = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._socket_folder: Path | None = None

    async def start(self) -> None:
        """Listens. Where that cannot be done the log says why; jobs go on without."""
        try:
            # Not in the store: a socket's path is at most about 100 bytes long. Only this user may enter it.
            self._socket_folder = Path(tempfile.mkdtemp(prefix="dmesr-"))
            path = self._socket_folder / "encode.sock"
            self._server = await asyncio.start_unix_server(self._serve, path)
            self._address.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self._address.with_name(f".{self._address.name}")
            unfinished.write_text(str(path))
            unfinished.replace(self._address)
        except OSError as error:
            _LOG.warning("texts to search for are not encoded here: %s", error)

    async def stop(self) -> None:
        """Stops listening and lets go of the models."""
        with contextlib.suppress(OSError):
            self._address.unlink(missing_ok=True)
        if self._server is not None:
            self._server.close()
        if self._socket_folder is not None:
            shutil.rmtree(self._socket_folder, ignore_errors=True)
        for encoder in self._own.values():
            await encoder.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            question = await receive(reader)
            await send(writer, *await self._answer(question["encoder"], question["texts"]))
        except (OSError, asyncio.IncompleteReadError, ValueError, KeyError) as error:
            _LOG.warning("a text to search for was not encoded: %s", error)
        finally:
            writer.close()

    async def _answer(self, wanted: Mapping[str, Any], texts: list[str]) -> tuple[dict[str, Any], bytes]:
        try:
            encoder = await self._encoder(wanted)
            vectors_ND = await encoder.encode(texts)
        except ServiceError as error:
            told = {"reason": error.reason, "message": error.message, "metadata": dict(error.metadata)}
            return {"error": told}, b""
        return {"dim": int(vectors_ND.shape[1])}, np.ascontiguousarray(vectors_ND, "<f4").tobytes()

    async def _encoder(self, wanted: Mapping[str, Any]) -> Encoder:
        """The encoder of a recipe, loaded.

        Raises:
            ServiceError: ENCODER_UNAVAILABLE.
        """
        lent = self._lent()
        if lent is not None and _same(lent, wanted):
            await lent.start()
            return lent
        async with self._choosing:
            key = json.dumps(wanted, sort_keys=True)
            encoder = self._own.get(key)
            if encoder is None:
                encoder = await asyncio.to_thread(self._made, wanted)
                await encoder.start()
                self._own[key] = encoder
            return encoder

    def _made(self, wanted: Mapping[str, Any]) -> Encoder:
        configured = self._config.encoder
        name = f"{wanted.get('name', '')}:{wanted.get('model', '')}"
        for config in (configured, encoders.chosen(name, configured)):
            with contextlib.suppress(ServiceError):
                encoder = encoders.create(config)
                if _same(encoder, wanted):
                    return encoder
        raise ServiceError(
            "ENCODER_UNAVAILABLE",
            f"the recipe's vectors were made by {name} (revision {wanted.get('revision', '')!s:.40}), which this "
            f"enricher does not have: its own is {configured.kind}:{configured.model}; give it that encoder, or search "
            "by item_id or vector",
            encoder=name,
        )


def _same(encoder: Encoder, wanted: Mapping[str, Any]) -> bool:
    return bool(json.loads(json.dumps(dict(encoder.recipe_fields()))) == dict(wanted))
