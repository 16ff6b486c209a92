"""The encoder elsewhere: text-embedding-ada-002, its successors, and whatever else an OpenAI-compatible endpoint runs.

Shapes: N texts, U of them different, D the model's width.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import operator
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmesr_server.config import BUNDLED_ENCODER, EncoderConfig
from dmesr_server.enrichment.openai_endpoint import (
    Endpoint,
    EndpointError,
    Malformed,
    OutOfQuota,
    RateLimited,
    Refused,
    Settings,
    Unauthorised,
    Unreachable,
)
from dmesr_server.errors import ServiceError

NAME = "openai"
_LOG = logging.getLogger(__name__)

# Width of the models that everybody knows, and whether they can be asked for fewer dimensions.
_KNOWN = {
    "text-embedding-ada-002": (1536, False),
    "text-embedding-3-small": (1536, True),
    "text-embedding-3-large": (3072, True),
}
_MAX_TEXTS = 2048  # in one call
_MAX_BYTES = 250_000  # in one call: 300,000 tokens are accepted, and no token is shorter than a byte
_TRUNCATION = "refused-1"  # what is refused as too long is cut until it fits; raise it with every change of how
_SHORTENINGS = 8
_SHORTENED_TO = 0.95  # of what would just fit by the endpoint's own count
_LEAST_CHARACTERS = 16
_PROBE_RETRIES = 2
_PROBE = "A text to see how wide vectors are."


class OpenaiEncoder:
    """Asks an endpoint for every vector."""

    name = NAME

    def __init__(self, config: EncoderConfig):
        """Reads the settings; connects to nothing.

        Raises:
            ServiceError: ENCODER_UNAVAILABLE when model, width or base URL are not settled.
        """
        self._config = config
        self.model = config.model
        self.revision = ""
        if config.model == BUNDLED_ENCODER:
            raise self._unavailable("it is no model of an endpoint", 'set it, for instance to "text-embedding-ada-002"')
        self.dim, self._dimensions = self._width()
        self.batch_size = min(config.batch_size, _MAX_TEXTS)
        try:
            self._endpoint = Endpoint(
                Settings(
                    base_url=config.base_url,
                    api_key_env=config.api_key_env,
                    concurrency=config.concurrency,
                    timeout_seconds=config.timeout_seconds,
                    max_retries=config.max_retries,
                )
            )
        except ValueError as error:
            raise self._unavailable(str(error), "set enrichment.encoder.base_url") from error
        self._starting = asyncio.Lock()
        self._up = False
        self._format = "base64"  # a third of the bytes, and exact; not every server knows it

    def recipe_fields(self) -> Mapping[str, Any]:
        """Model, width and normalisation. The address is none: a model may move."""
        return {
            "name": self.name,
            "model": self.model,
            "revision": self.revision,
            "truncation": _TRUNCATION,
            "normalisation": "l2",
            "dtype": "float32",
            "dim": self.dim,
        }

    async def start(self) -> None:
        """Sees that the endpoint is there, takes the key, and gives vectors of the expected width."""
        async with self._starting:
            if self._up:
                return
            self._endpoint.open()
            retries = min(_PROBE_RETRIES, self._config.max_retries)
            try:
                try:
                    await self._asked([_PROBE], max_retries=retries)
                except Refused as error:
                    if error.told.parameter != "encoding_format" and "encoding_format" not in error.told.message:
                        raise
                    self._format = "float"
                    await self._asked([_PROBE], max_retries=retries)
            except EndpointError as error:
                await self._endpoint.close()
                raise self._denied(error) from error
            except BaseException:
                await self._endpoint.close()
                raise
            self._up = True
            _LOG.info("%s encodes with the model %s, width %d", self._endpoint.host, self.model, self.dim)

    async def stop(self) -> None:
        """Closes the connections."""
        self._up = False
        await self._endpoint.close()

    async def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of length 1, in order: [N, D]; NaN for a text that the endpoint refuses by itself.

        The same text is encoded once. A text that is too long is cut after a word until it fits.
        """
        assert self._up, "start() comes before encode()"
        vectors_ND = np.zeros((len(texts), self.dim), np.float32)
        unique = sorted(dict.fromkeys(texts), key=len, reverse=True)
        try:
            async with asyncio.TaskGroup() as group:
                calls = [group.create_task(self._encoded(part)) for part in _parts(unique, self.batch_size)]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if unique:
            vectors_UD = np.concatenate([call.result() for call in calls])
            position = {text: index for index, text in enumerate(unique)}
            vectors_ND[:] = vectors_UD[[position[text] for text in texts]]
        return vectors_ND

    async def _encoded(self, texts: list[str]) -> NDArray[np.float32]:
        """Vectors of one call's texts; those of a call that is refused are tried one by one."""
        try:
            return await self._asked(texts)
        except Refused as error:
            if error.status == 404:
                raise self._denied(error) from error
            if len(texts) > 1:
                half = len(texts) // 2
                return np.concatenate([await self._encoded(texts[:half]), await self._encoded(texts[half:])])
            return await self._shortened(texts[0], error)
        except EndpointError as error:
            raise self._denied(error) from error

    async def _shortened(self, text: str, error: Refused) -> NDArray[np.float32]:
        """The vector of a text that was refused: it is cut where it is too long; NaN for any other reason."""
        whole = len(text)
        for _ in range(_SHORTENINGS):
            if not error.told.is_too_long or len(text) <= _LEAST_CHARACTERS:
                break
            limit, actual = error.told.limit_tokens, error.told.actual_tokens
            share = _SHORTENED_TO * limit / actual if 0 < limit < actual else 0.5
            text = _cut(text, max(_LEAST_CHARACTERS, int(share * len(text))))
            try:
                vectors_1D = await self._asked([text])
            except Refused as again:
                error = again
                continue
            except EndpointError as lost:
                raise self._denied(lost) from lost
            _LOG.debug("a text of %d characters was cut to %d for the model %s", whole, len(text), self.model)
            return vectors_1D
        # Not the endpoint's message, which may quote the text.
        _LOG.warning("a text of %d characters has no vector: the endpoint answers %d", whole, error.status)
        return np.full((1, self.dim), np.nan, np.float32)

    async def _asked(self, texts: list[str], *, max_retries: int | None = None) -> NDArray[np.float32]:
        body: dict[str, Any] = {"model": self.model, "input": texts, "encoding_format": self._format}
        if self._dimensions is not None:
            body["dimensions"] = self._dimensions
        vectors_ND = await self._endpoint.post(
            "embeddings", body, read=partial(_vectors, count=len(texts)), max_retries=max_retries
        )
        if vectors_ND.shape[1] != self.dim:
            raise self._unavailable(
                f"it gives vectors of width {vectors_ND.shape[1]}, expected {self.dim}",
                f"set enrichment.encoder.dim = {vectors_ND.shape[1]}, or see which model the endpoint runs",
            )
        lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            unit_ND: NDArray[np.float32] = vectors_ND / lengths_N1  # a vector of zeros is none, and becomes NaN
        return unit_ND

    def _width(self) -> tuple[int, int | None]:
        """The width of the vectors, and what is asked for where a model offers several."""
        wanted = self._config.dim
        if self.model not in _KNOWN:
            if wanted is None:
                raise self._unavailable("the width of its vectors is not known", "set enrichment.encoder.dim")
            return wanted, None
        width, shortens = _KNOWN[self.model]
        if wanted is None or wanted == width:
            return width, None
        if not shortens or wanted > width:
            fewer = "at most " if shortens else ""
            raise self._unavailable(
                f"its vectors have {fewer}{width} dimensions, enrichment.encoder.dim is {wanted}", "change one of them"
            )
        return wanted, wanted

    def _denied(self, error: EndpointError) -> ServiceError:
        variable = self._config.api_key_env
        if isinstance(error, Unauthorised):
            remedy = f"give the enricher a key in the environment variable {variable}"
            if self._endpoint.has_key:
                remedy = f"the enricher's key in {variable} is wrong or lacks a permission"
        elif isinstance(error, OutOfQuota):
            remedy = "see to the account's credit, then start the job again"
        elif isinstance(error, RateLimited):
            remedy = "wait, lower enrichment.encoder.concurrency or raise max_retries, then start the job again"
        elif isinstance(error, Unreachable):
            remedy = "see that the endpoint runs and that enrichment.encoder.base_url is its address"
        elif error.status in (404, 405):
            remedy = "see that it has the model, and that enrichment.encoder.base_url ends in the version, such as /v1"
        else:
            remedy = "see enrichment.encoder, then start the job again"
        return self._unavailable(str(error), remedy)

    def _unavailable(self, why: str, remedy: str) -> ServiceError:
        return ServiceError(
            "ENCODER_UNAVAILABLE",
            f"the encoder openai cannot work with the model {self.model} (enrichment.encoder.model): {why}; {remedy}",
            encoder=self.model,
        )


def _parts(texts: Sequence[str], most: int) -> list[list[str]]:
    """Texts by calls: so many, and so many bytes."""
    parts: list[list[str]] = []
    size = 0
    for text in texts:
        length = len(text.encode())
        if not parts or len(parts[-1]) == most or size + length > _MAX_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(text)
        size += length
    return parts


def _cut(text: str, characters: int) -> str:
    kept = text[:characters]
    words = kept.rsplit(" ", 1)[0]
    return words if len(words) >= characters // 2 else kept


def _vectors(answer: Any, *, count: int) -> NDArray[np.float32]:
    """Reads an answer's vectors in the order of its texts: [N, D].

    Raises:
        Malformed: They are not there, not as many, or not of one width.
    """
    rows = answer.get("data") if isinstance(answer, Mapping) else None
    if not isinstance(rows, list) or len(rows) != count:
        raise Malformed(f"{len(rows) if isinstance(rows, list) else 'no'} vectors for {count} texts")
    try:
        placed = [(row.get("index", place), _vector(row["embedding"])) for place, row in enumerate(rows)]
        placed.sort(key=operator.itemgetter(0))
    except (AttributeError, KeyError, TypeError, ValueError, binascii.Error) as error:
        raise Malformed("vectors that cannot be read") from error
    if [index for index, _ in placed] != list(range(count)) or len({len(vector) for _, vector in placed}) != 1:
        raise Malformed("vectors that do not go with the texts")
    return np.stack([vector for _, vector in placed])


def _vector(embedding: str | list[float]) -> NDArray[np.float32]:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4")
    return np.asarray(embedding, np.float32)
