"""Texts to search for become vectors in an enricher, the only process that loads an encoder."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dmesr_server.encoding_socket import ADDRESS_PREFIX, MAX_TEXTS, receive, send
from dmesr_server.errors import ServiceError

_LOG = logging.getLogger(__name__)
_KEPT = 1_024  # vectors of texts asked for lately
_SECONDS = 120.0  # for an answer: the first one may wait for the model to load

#: A text that waits for its vector.
_Waiting = tuple[str, "asyncio.Future[np.ndarray]"]


def no_enricher() -> ServiceError:
    """No enricher answers on this machine."""
    return ServiceError(
        "NO_ENRICHER",
        "a text is encoded by an enricher on the server's machine, and none answers: start one with 'dmesr-cli "
        "enricher', run 'dmesr-cli serve' without --no-enricher, or search by item_id or vector",
    )


class QueryEncoder:
    """Asks enrichers. For one event loop; texts that wait at the same moment go in one question."""

    def __init__(self, folder: Path | None):
        """Makes it; asks nobody yet.

        Args:
            folder: Where enrichers leave their addresses; None where the store is not on this machine.
        """
        self._folder = folder
        self._kept: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()
        self._waiting: dict[str, list[_Waiting]] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}

    async def encode(self, encoder: Mapping[str, Any], text: str) -> np.ndarray:
        """The vector of a text, float32 [D].

        Args:
            encoder: What the recipe says of its encoder.
            text: The text.

        Raises:
            ServiceError: NO_ENRICHER, or what the enricher says: ENCODER_UNAVAILABLE.
        """
        which = json.dumps(encoder, sort_keys=True)
        kept = self._kept.get((which, text))
        if kept is not None:
            self._kept.move_to_end((which, text))
            return kept
        future: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(which, []).append((text, future))
        if which not in self._asking:
            self._asking[which] = asyncio.create_task(self._ask_all(which))
        vector_D = await future
        self._kept[which, text] = vector_D
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return vector_D

    async def _ask_all(self, which: str) -> None:
        """Asks until nobody waits. What comes while a question is under way makes the next one."""
        try:
            while waiting := self._waiting.pop(which, []):
                waiting = [(text, future) for text, future in waiting if not future.done()]  # the others have gone
                for start in range(0, len(waiting), MAX_TEXTS):
                    await self._answer(which, waiting[start : start + MAX_TEXTS])
        finally:
            del self._asking[which]

    async def _answer(self, which: str, batch: list[_Waiting]) -> None:
        texts = list(dict.fromkeys(text for text, _ in batch))
        failure: ServiceError | None = None
        vectors: dict[str, np.ndarray] = {}
        try:
            vectors = dict(zip(texts, await self._ask(which, texts), strict=True))
        except ServiceError as error:
            failure = error
        except Exception as error:  # whoever waits must hear of it
            _LOG.exception("texts to search for were not encoded")
            failure = ServiceError("INTERNAL", f"the text was not encoded: {error}")
        for text, future in batch:
            if future.done():  # its caller has gone
                continue
            if failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(vectors[text])

    async def _ask(self, which: str, texts: list[str]) -> np.ndarray:
        for file in await asyncio.to_thread(_addresses, self._folder):
            try:
                reader, writer = await asyncio.open_unix_connection(file.read_text())
            except (FileNotFoundError, ConnectionRefusedError):
                file.unlink(missing_ok=True)  # its enricher was killed
                continue
            except OSError as error:
                _LOG.debug("enricher at %s: %s", file, error)
                continue
            try:
                async with asyncio.timeout(_SECONDS):
                    await send(writer, {"encoder": json.loads(which), "texts": texts})
                    answer = await receive(reader)
                    if "error" in answer:
                        told = answer["error"]
                        raise ServiceError(told["reason"], told["message"], **told["metadata"])
                    packed = await reader.readexactly(4 * len(texts) * answer["dim"])
                return np.frombuffer(packed, "<f4").reshape(len(texts), answer["dim"])
            except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
                _LOG.warning("an enricher did not answer: %s", error or type(error).__name__)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        raise no_enricher()


def _addresses(folder: Path | None) -> list[Path]:
    """The files of the enrichers' addresses, the latest first."""
    if folder is None or not folder.is_dir():
        return []
    found = []
    for file in folder.glob(f"{ADDRESS_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):
            found.append((file.stat().st_mtime, file))
    return [file for _, file in sorted(found, reverse=True)]
