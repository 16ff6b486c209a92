"""`dmesr-cli`: parses, calls the SDK, prints."""

from __future__ import annotations

import os
from collections.abc import Sequence

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> int:
    """Runs `dmesr-cli` and returns its exit status: 0, 1 (failure), 2 (usage, missing extra) or 130 (Ctrl-C)."""
    # gRPC's own notes on standard error mean nothing to who types a command; read when gRPC is first imported.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        # Importing `dmesr.cli.console`, as the extras do, should not build every command.
        from .app import main as run

        return run(args)
    except KeyboardInterrupt:
        return 130
