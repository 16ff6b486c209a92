"""Pins: versions of a recipe's vectors that stay readable for a time."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType

from dmesr.bridge import EventLoopThread
from dmesr.errors import DeadlineExceeded, ServerUnavailable, VersionNotFound
from dmesr.transport import Rpc, Transport
from dmesr.v1 import embeddings_pb2

RELEASE = Rpc("EmbeddingService/ReleasePin", embeddings_pb2.ReleasePinRequest, embeddings_pb2.ReleasePinResponse)

_log = logging.getLogger("dmesr")


@dataclass(frozen=True)
class PinnedVersion:
    """A version of a recipe's vectors that stays readable until its time is up."""

    pin_id: str
    recipe_id: str
    version: int
    digest: str  # sha256 over the (item id, source hashes) of that version
    expire_time: datetime | None


@dataclass(frozen=True)
class AsyncPin(PinnedVersion):
    """A pinned version, for coroutines. `async with` gives it back at the end."""

    _transport: Transport = field(repr=False, compare=False)

    async def release(self) -> None:
        """Gives the pin back before its time."""
        await self._transport.unary(RELEASE, embeddings_pb2.ReleasePinRequest(pin_id=self.pin_id))

    async def __aenter__(self) -> AsyncPin:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.release()
        except (VersionNotFound, ServerUnavailable, DeadlineExceeded) as trouble:
            # A pin ends by itself: what was done under it is not to be lost over giving it back.
            _log.warning("the pin %s was not given back: %s", self.pin_id, trouble)


@dataclass(frozen=True)
class Pin(PinnedVersion):
    """A pinned version. `with` gives it back at the end."""

    _core: AsyncPin = field(repr=False, compare=False)
    _loop: EventLoopThread = field(repr=False, compare=False)

    @classmethod
    def of(cls, core: AsyncPin, loop: EventLoopThread) -> Pin:
        """The sync face of a pin."""
        return cls(core.pin_id, core.recipe_id, core.version, core.digest, core.expire_time, core, loop)

    def release(self) -> None:
        """Gives the pin back before its time.

        Raises:
            VersionNotFound: The pin has expired.
        """
        self._loop.run(self._core.release())

    def __enter__(self) -> Pin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run(self._core.__aexit__(kind, error, trace))
