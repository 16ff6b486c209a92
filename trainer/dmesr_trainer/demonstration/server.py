"""A server of the demonstration's own, as `dmesr-cli serve` starts it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_START_SECONDS = 90.0  # a busy machine needs a while to import everything
_STOP_SECONDS = 30.0


class ServerStartError(RuntimeError):
    """The server did not come up. The message has the end of its log."""


@contextmanager
def running_server(folder: Path) -> Iterator[str]:
    """Runs a server on a free port of the loopback interface, and stops it whatever happens.

    Args:
        folder: Holds its store, its log and the file by which it says where it listens.

    Yields:
        "HOST:PORT".

    Raises:
        ServerStartError: It ended, or did not listen in time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ready, log = folder / "server.address", folder / "server.log"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "dmesr_server", "serve", "--host", "127.0.0.1", "--port", "0"]
    command += ["--store", str(folder / "store"), "--ready-file", str(ready)]
    with log.open("ab") as output:
        # A session of its own: Ctrl-C is for us, and we stop the server in good order.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield _address(process, ready=ready, log=log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], *, ready: Path, log: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if ready.exists() and (address := ready.read_text().strip()):
            return address
        if process.poll() is not None:
            lines = log.read_text(errors="replace").strip().splitlines()
            last = lines[-1] if lines else "its log is empty"
            raise ServerStartError(f"the server ended with status {process.returncode}: {last} (whole log: {log})")
        time.sleep(0.05)
    raise ServerStartError(f"the server did not listen within {_START_SECONDS:.0f} s; see {log}")
