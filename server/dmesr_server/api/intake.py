"""How long calls wait in gRPC before the server's code sees them, and what share is refused so that it stays short.

gRPC hands calls to the event loop one after the other. Where more come than the machine answers, they stand in that
line, which no count of calls at work can see. So the server sends itself a call now and then, over a socket that nobody
else can reach, and takes the time until it has come. While that is longer than it should be, a growing share of calls
is refused as soon as it is seen, which costs a fraction of answering it: the line gets shorter, whoever keeps to the
hint stays away for as long as the line lasts, and what is let in is answered soon. Where hardly any call comes, it is
not callers that keep the machine busy, and refusing them would help nobody.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

_LOG = logging.getLogger(__name__)
_METHOD = "/dmesr.Intake/Arrive"
_LOOK_SECONDS = 0.2
_UP, _DOWN = 0.15, 0.05  # of the share, at each look
_CROWD = 10  # calls seen between two looks, from which on they may be a line
_MOST = 0.95  # some are always let in: it is by them that the line is seen to have gone
_LONGEST_HINT = 10.0  # seconds


class Intake:
    """The line before one API process."""

    def __init__(self, *, most_seconds: float):
        """Makes it, with no line.

        Args:
            most_seconds: How long calls may wait to be seen before some are refused.
        """
        self._most_seconds = most_seconds
        self._sent = self._measured = 0.0
        self._arrived = True
        self._share = self._due = 0.0
        self._seen = 0  # calls since the last look

    @property
    def seconds(self) -> float:
        """How long a call that comes now is likely to wait to be seen."""
        return self._measured if self._arrived else max(self._measured, time.monotonic() - self._sent)

    def refuses(self) -> bool:
        """Whether the next call is to be refused: evenly spread, and as many as the line asks for."""
        self._seen += 1
        self._due += self._share
        if self._due < 1:
            return False
        self._due -= 1
        return True

    @property
    def hint_seconds(self) -> float:
        """After how long it is worth to come again."""
        return min(2 * max(self.seconds, self._most_seconds), _LONGEST_HINT)

    def look(self) -> None:
        """Settles the share anew."""
        late = self.seconds > self._most_seconds and self._seen >= _CROWD
        self._seen = 0
        before = self._share
        self._share = min(self._share + _UP, _MOST) if late else max(self._share - _DOWN, 0.0)
        if late and not before:
            _LOG.warning("calls wait %.1f s before they are seen: some are refused until that is shorter", self.seconds)

    def sent(self) -> None:
        """A call of our own is under way."""
        self._sent, self._arrived = time.monotonic(), False

    def arrived(self) -> None:
        """It has come."""
        self._measured, self._arrived = time.monotonic() - self._sent, True

    def lost(self) -> None:
        """It will not come."""
        self._arrived = True


class IntakeProbe:
    """The calls that a server sends itself."""

    def __init__(self, intake: Intake):
        """Opens nothing yet."""
        self._intake = intake
        self._folder = tempfile.TemporaryDirectory(prefix="dmesr-")  # of ours alone; a short path, as sockets need
        self._address = f"unix:{Path(self._folder.name, 'intake')}"

    def bind(self, server: grpc.aio.Server) -> None:
        """Lets the server listen for them, before it starts."""

        async def arrive(request: bytes, context: Any) -> bytes:
            if context.peer().startswith("unix:"):  # the server's other port knows the method too
                self._intake.arrived()
            return b""

        handler: Any = grpc.unary_unary_rpc_method_handler(arrive)
        service, method = _METHOD[1:].split("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        server.add_insecure_port(self._address)

    async def run(self) -> None:
        """Sends one after the other until it is cancelled."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        try:
            async with grpc.aio.insecure_channel(self._address, options=options) as channel:
                as_it_is: Any = None  # bytes; the types know no such thing
                call: Any = channel.unary_unary(_METHOD, as_it_is, as_it_is)
                await channel.channel_ready()
                while True:
                    self._intake.sent()
                    answer = asyncio.ensure_future(call(b""))
                    while not answer.done():
                        await asyncio.wait({answer}, timeout=_LOOK_SECONDS)
                        self._intake.look()
                    try:
                        await answer
                    except grpc.aio.AioRpcError:  # it never came, as when the server stops: no measure of a line
                        self._intake.lost()
                    await asyncio.sleep(_LOOK_SECONDS)
        finally:
            self._folder.cleanup()
