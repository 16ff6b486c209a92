"""How an API process and an enricher of one machine speak about texts that people search for.

An enricher listens at a Unix socket of its own, in a folder that only its user may enter, and leaves its path in the
`run` folder of the store. Messages either way: 4 bytes of length (big-endian), then JSON; an answer's vectors follow as
packed little-endian float32. Internal: both ends are of one version.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ADDRESS_PREFIX = "encoder-"  # of the files that hold the path of a socket
MAX_TEXTS = 256  # in one question
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024


def run_folder(store_folder: Path | None) -> Path | None:
    """Where the processes of one machine find each other; None where the store is elsewhere."""
    return None if store_folder is None else store_folder / "run"


async def send(writer: asyncio.StreamWriter, message: Mapping[str, Any], payload: bytes = b"") -> None:
    """Sends one message and what follows it."""
    text = json.dumps(message).encode()
    writer.write(struct.pack(">I", len(text)) + text + payload)
    await writer.drain()


async def receive(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The next message.

    Raises:
        IncompleteReadError: The other end has gone.
        ValueError: That is no message.
    """
    (length,) = struct.unpack(">I", await reader.readexactly(4))
    if length > _MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {length} bytes")
    content: dict[str, Any] = json.loads(await reader.readexactly(length))
    return content
