"""How a serving process says that it answers, and how it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path


def announce(address: str, ready_file: Path | None) -> None:
    """Says where the server answers: on stdout and, when asked to, in a file."""
    if ready_file is not None:
        # Whole or not at all: whoever waits for the file reads it the moment it appears.
        part = ready_file.with_name(f"{ready_file.name}.{os.getpid()}")
        part.write_text(address)
        part.rename(ready_file)
    sys.stdout.write(f"dmesr server listening on {address}\n")
    sys.stdout.flush()


def retract(ready_file: Path | None) -> None:
    """Takes the file away: the server answers no more."""
    if ready_file is not None:
        ready_file.unlink(missing_ok=True)


def stop_signal() -> asyncio.Event:
    """Set by SIGTERM and by SIGINT; a second SIGINT ends the process at once."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        if stopping.is_set():
            os._exit(130)  # Ctrl-C a second time: now. Children end with what they hold of this process.
        stopping.set()

    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.add_signal_handler(signal.SIGINT, interrupt)
    return stopping
