"""A real server for tests: an API process and, unless told otherwise, its enricher."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

START_SECONDS = 90.0  # a loaded machine needs some
STOP_SECONDS = 120.0

# The server asks the kernel for its own death with the test session, even by SIGKILL (Linux). Not a preexec_fn: the
# session has threads of gRPC, and a fork that runs Python beside them can hang.
_DIE_WITH_PARENT = (
    "import ctypes, runpy; ctypes.CDLL(None).prctl(1, 9); runpy.run_module('dmesr_server', run_name='__main__')"
)
_LAUNCH = ["-c", _DIE_WITH_PARENT] if sys.platform == "linux" else ["-m", "dmesr_server"]


class RunningServer:
    """One server process with its store. It ends with the test session, however that ends.

    Attributes:
        store: Its folder.
        config: Settings that differ from the defaults, by their name in the environment without the prefix, lower case:
            {"enrichment__auto": True, "server__token": "…"}.
        address: "HOST:PORT".
    """

    def __init__(self, folder: Path, *, enricher: bool = True, **config: Any):
        self.store = folder / "store"
        self.config: Mapping[str, Any] = config
        self.address = ""
        self._folder = folder
        self._enricher = enricher
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def log(self) -> str:
        """What the server has written so far."""
        file = self._folder / "server.log"
        return file.read_text(errors="replace") if file.exists() else ""

    @property
    def api_pid(self) -> int:
        """Process id of the API process."""
        assert self._process is not None, "the server does not run"
        return self._process.pid

    @property
    def enricher_pid(self) -> int:
        """Process id of the enricher beside it; waits until there is one."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            for child in psutil.Process(self.api_pid).children():
                try:
                    if "dmesr_server.enricher" in child.cmdline():
                        return child.pid
                except (psutil.NoSuchProcess, psutil.ZombieProcess):
                    continue
            time.sleep(0.02)
        raise AssertionError(f"no enricher started:\n{self.log}")

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of its workers, where it has several, by their number."""
        found = {}
        for child in psutil.Process(self.api_pid).children():
            try:
                command = child.cmdline()
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            if "dmesr_server.worker" in command:
                found[int(command[command.index("--number") + 1])] = child.pid
        return [found[number] for number in sorted(found)]

    def start(self) -> RunningServer:
        """Starts it and waits until it answers."""
        assert self._process is None, "the server runs already"
        ready = self._folder / "ready"
        ready.unlink(missing_ok=True)
        command = [sys.executable, *_LAUNCH, "serve", "--store", str(self.store), "--port", str(self._port)]
        command += ["--ready-file", str(ready)] + ([] if self._enricher else ["--no-enricher"])
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DMESR_")}
        environment |= {f"DMESR_{name.upper()}": _text(value) for name, value in self.config.items()}
        environment.setdefault("DMESR_SERVER__GRACE_SECONDS", "3")
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while not ready.exists():
            if self._process.poll() is not None:
                code = self._process.returncode
                self._process = None
                raise AssertionError(f"the server ended with code {code}:\n{self.log[-5000:]}")
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"the server did not start in {START_SECONDS} s:\n{self.log[-5000:]}")
            time.sleep(0.02)
        self.address = ready.read_text()
        self._port = int(self.address.rpartition(":")[2])
        return self

    def stop(self) -> int:
        """Stops it in order (SIGTERM) and returns its exit code; does nothing when it does not run."""
        if self._process is None:
            return 0
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server did not stop in {STOP_SECONDS} s:\n{self.log[-5000:]}") from None
        self._process = None
        return code

    def kill(self) -> None:
        """Kills the API process (SIGKILL) and waits until its enricher has followed."""
        if self._process is None:
            return
        children = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        self._process.wait()
        self._process = None
        _, alive = psutil.wait_procs(children, timeout=STOP_SECONDS)
        outlived = [" ".join(child.cmdline()) for child in alive]
        for child in alive:
            child.kill()
        assert not outlived, f"{outlived} outlived the API process"

    def restart(self) -> RunningServer:
        """Starts it again, on the same port and store; stops it first when it runs."""
        self.stop()
        return self.start()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
