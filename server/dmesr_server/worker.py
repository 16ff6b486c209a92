"""A worker: one of several API processes that answer at one port. Started by `workers`, never by hand.

It holds one end of a socket to the parent, the *line*. Each byte on it is a message; its end means that the other end
has gone, however that happened.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from dmesr_server.config import load
from dmesr_server.errors import ServiceError
from dmesr_server.telemetry import logs, metrics

#: What a byte on the line means. The parent passes on to the other workers what is no `READY`.
READY = b"r"
MESSAGES = {b"a": "aliases", b"v": "vectors"}
_BYTES = {name: byte for byte, name in MESSAGES.items()}


class WorkerLine:
    """A worker's end of the line.

    Attributes:
        number: Which worker this is, from 0. The first one does what one process must do for all.
        folder: Where the files are that all workers map.
    """

    def __init__(self, *, descriptor: int, number: int, folder: Path):
        self.number = number
        self.folder = folder
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)

    def ready(self) -> None:
        """Tells the parent that this worker answers."""
        self._send(READY)

    def tell(self, what: str) -> None:
        """Tells the other workers that something has changed. From any thread; never blocks."""
        self._send(_BYTES[what])

    def listen(self, told: Callable[[str], None], gone: Callable[[], None]) -> None:
        """Calls `told` for what the others tell and `gone` once the parent has gone; both from the event loop."""
        loop = asyncio.get_running_loop()

        def read() -> None:
            try:
                heard = self._socket.recv(4096)
            except BlockingIOError:
                return
            except OSError:
                heard = b""
            if not heard:
                loop.remove_reader(self._socket)
                gone()
            for byte in set(heard):
                told(MESSAGES[bytes([byte])])

        loop.add_reader(self._socket, read)

    def _send(self, byte: bytes) -> None:
        try:
            self._socket.send(byte)
        except OSError:
            # Full: the parent has not read what was told before, and will look for it all. Gone: nobody is left.
            return


def main() -> int:
    """The process: reads its flags, runs, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dmesr_server.worker", description=__doc__)
    parser.add_argument("--line-fd", type=int, required=True, help="this end of the line")
    parser.add_argument("--number", type=int, required=True, help="which worker this is, from 0")
    parser.add_argument("--folder", type=Path, required=True, help="where the files are that all workers map")
    given = parser.parse_args()
    config = load()
    metrics.inherit()
    logs.configure(config, process=f"worker {given.number}")
    logging.getLogger("dmesr_server").setLevel(config.log_level)
    from dmesr_server import app, preflight  # the line is there first: who is told to stop meanwhile stops

    line = WorkerLine(descriptor=given.line_fd, number=given.number, folder=given.folder)
    try:
        asyncio.run(app.run(config, enricher=False, line=line))
    except (preflight.StartError, ServiceError) as error:
        parser.exit(1, f"error: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
