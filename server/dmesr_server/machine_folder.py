"""Where the processes of one machine keep files that all of them map."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmesr_server.config import Config
from dmesr_server.encoding_socket import run_folder


@contextmanager
def machine_folder(config: Config) -> Iterator[Path]:
    """The folder `run` of the store; a temporary one, gone at the end, where that is elsewhere or may not be written.

    Whatever is in there can be made again.
    """
    beside = None if config.server.read_only else run_folder(config.store.folder)
    if beside is not None:
        yield beside
        return
    with tempfile.TemporaryDirectory(prefix="dmesr-run-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
