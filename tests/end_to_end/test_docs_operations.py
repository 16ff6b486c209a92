"""docs/operations.md: its commands, in its order, on free ports."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import dmesr

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"


def test_the_commands_run(tmp_path: Path):
    blocks = re.findall(r"^```sh\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert len(commands) == 8
    servers: list[subprocess.Popen[bytes]] = []
    addresses: list[str] = []
    try:
        for number, (program, *arguments) in enumerate(commands):
            assert program == "dmesr-cli"
            if arguments[0] == "serve":
                ready = tmp_path / f"ready-{number}"
                arguments[arguments.index("--port") + 1] = "0"
                arguments += ["--ready-file", str(ready), *([] if "--read-only" in arguments else ["--no-enricher"])]
                servers.append(_started(arguments, tmp_path, number))
                deadline = time.monotonic() + 300
                while not ready.exists():
                    assert servers[-1].poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                addresses.append(ready.read_text())
                if len(servers) == 1:
                    with dmesr.connect(addresses[0]) as client:
                        client.items.upsert([dmesr.Item("a", {"title": "A"})])
                continue
            environment = os.environ | {"DMESR_SERVER_ADDRESS": addresses[0]}
            ran = subprocess.run(
                [sys.executable, "-m", "dmesr.cli", *arguments],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert ran.returncode == 0, ran.stderr
            assert ("0 faults" if "check" in arguments else "items") in ran.stdout
        for address in addresses:  # workers, their replica, and what was restored
            with dmesr.connect(address) as client:
                assert client.items.get("a").attributes == {"title": ["A"]}
    finally:
        for server in servers:
            server.send_signal(signal.SIGTERM)
        assert [server.wait(30) for server in servers] == [0] * len(servers)


def _started(arguments: list[str], folder: Path, number: int) -> subprocess.Popen[bytes]:
    with (folder / f"log-{number}").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dmesr.cli", *arguments],
            cwd=folder,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
