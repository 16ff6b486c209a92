"""Keeps an enricher process running beside the API process, and lets it never outlive it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Mapping

from dmesr_server.config import Config

_LOG = logging.getLogger(__name__)
_FIRST_DELAY = 0.5  # seconds before the first restart
_LONGEST_DELAY = 60.0  # seconds
_STEADY = 60.0  # seconds: a child that lived this long starts again without delay


class EnricherSupervisor:
    """Starts the enricher, starts it again with growing delays when it ends, stops it."""

    def __init__(self, config: Config):
        self._environment = _environment(config)
        self._grace = config.server.grace_seconds
        self._process: asyncio.subprocess.Process | None = None
        # The child holds the read end and ends when it closes. Only this process holds the write end, so the kernel
        # closes it however this process dies.
        self._read_end, self._write_end = os.pipe()

    @property
    def pid(self) -> int | None:
        """The process id of the enricher that runs now."""
        return None if self._process is None else self._process.pid

    async def run(self) -> None:
        """Runs until it is cancelled, then stops the child: politely at first."""
        delay = _FIRST_DELAY
        try:
            while True:
                started = time.monotonic()
                try:
                    code = await self._live()
                except OSError as error:  # out of memory, processes or files: the API goes on without
                    how = f"no enricher can be started: {error.strerror}"
                else:
                    how = f"enricher {self.pid} ended with code {code}"
                    delay = _FIRST_DELAY if time.monotonic() - started > _STEADY else delay
                self._process = None
                _LOG.warning("%s; starting another in %.1f s", how, delay)
                await asyncio.sleep(delay)
                delay = min(2 * delay, _LONGEST_DELAY)
        finally:
            await self._stop()
            os.close(self._read_end)
            os.close(self._write_end)

    async def _live(self) -> int:
        """One enricher, from start to end; its exit code."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "dmesr_server.enricher",
            "--parent-fd",
            str(self._read_end),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(self._read_end,),
            env=self._environment,
            start_new_session=True,  # Ctrl-C is for the API process, which then stops its child in order
        )
        _LOG.info("enricher %d started", self._process.pid)
        return await self._process.wait()

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), timeout=self._grace)
        except TimeoutError:
            _LOG.warning("enricher %d did not stop within %.1f s; killing it", process.pid, self._grace)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _environment(config: Config) -> Mapping[str, str]:
    """The environment in which `config.load` gives the child just this configuration, flags included."""
    sections = config.model_dump(mode="json")
    # The child serves nobody: what lets callers in stays here.
    for secret in ("token", "tls_certificate", "tls_key"):
        sections["server"][secret] = None
    kept = {name: value for name, value in os.environ.items() if not _is_setting(name, sections)}
    return kept | {
        f"DMESR_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in sections.items()
    }


def _is_setting(name: str, sections: Mapping[str, object]) -> bool:
    parts = name.upper().removeprefix("DMESR_").split("__")
    return name.upper().startswith("DMESR_") and parts[0].lower() in sections
