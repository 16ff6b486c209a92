"""A server of the demonstration's own, as `dmesr-cli serve` starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServerStartError(f"cannot make {folder}: {error.strerror}; name another place with --folder") from error
    ready, log = folder / "server.address", folder / "server.log"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "dmesr_server", "serve", "--host", "127.0.0.1", "--port", "0"]
    command += ["--store", str(folder / "store"), "--ready-file", str(ready)]
    with log.open("ab") as output:
        # A session of its own: Ctrl-C is for us, and we stop the server in good order.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=_environment(),
        )
    try:
        with _ended_by_signals():
            yield _address(process, ready=ready, log=log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environment() -> dict[str, str]:
    """Ours, without what would make it another server than ours; describer and encoder may be chosen."""
    ours = ("DMESR_SERVER", "DMESR_STORE", "DMESR_TOKEN", "DMESR_LIMITS")
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(ours)}


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end the block as an exception does, so that what it holds is given back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
