"""Keeps processes running beside this one: started again with growing delays when they end, and never outliving it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence

from dmesr_server.config import Config
from dmesr_server.telemetry import metrics

_LOG = logging.getLogger(__name__)
_FIRST_DELAY = 0.5  # seconds before the first restart
_LONGEST_DELAY = 60.0  # seconds
_STEADY = 60.0  # seconds: a child that lived this long starts again without delay


class Supervisor:
    """Starts a process, starts it again with growing delays when it ends, stops it."""

    def __init__(self, *, name: str, environment: Mapping[str, str], grace_seconds: float):
        """Names the process; :meth:`run` starts it.

        Args:
            name: For the log.
            environment: Its environment.
            grace_seconds: How long it may take to end when it is told to.
        """
        self.name = name
        self._environment = environment
        self._grace = grace_seconds
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the process that runs now."""
        return None if self._process is None else self._process.pid

    async def run(self) -> None:
        """Runs until it is cancelled, then stops the child: politely at first."""
        delay = _FIRST_DELAY
        try:
            while True:
                started = time.monotonic()
                try:
                    code = await self._live()
                except OSError as error:  # out of memory, processes or files: the others go on without
                    how = f"{self.name} cannot be started: {error.strerror}"
                else:
                    how = f"{self.name} {self.pid} ended with code {code}"
                    delay = _FIRST_DELAY if time.monotonic() - started > _STEADY else delay
                if self.pid is not None:
                    metrics.process_gone(self.pid)
                self._process = None
                _LOG.warning("%s; starting another in %.1f s", how, delay)
                await asyncio.sleep(delay)
                delay = min(2 * delay, _LONGEST_DELAY)
        finally:
            await self._stop()
            self._close()

    async def _live(self) -> int:
        """One process, from start to end; its exit code."""
        raise NotImplementedError

    def _close(self) -> None:
        """Lets go of what the processes were given."""

    async def _start(self, module: str, arguments: Sequence[str], descriptors: Sequence[int]) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=descriptors,
            env=self._environment,
            start_new_session=True,  # Ctrl-C is for this process, which then stops its children in order
        )
        _LOG.info("%s %d started", self.name, self._process.pid)

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), timeout=self._grace)
        except TimeoutError:
            _LOG.warning("%s %d did not stop within %.1f s; killing it", self.name, process.pid, self._grace)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class EnricherSupervisor(Supervisor):
    """Keeps one enricher running."""

    def __init__(self, config: Config):
        """Names the enricher and what it is given; :meth:`run` starts it."""
        # The child serves nobody: what lets callers in stays here.
        environment = child_environment(config, secrets=False)
        super().__init__(name="enricher", environment=environment, grace_seconds=config.server.grace_seconds)
        # The child holds the read end and ends when it closes. Only this process holds the write end, so the kernel
        # closes it however this process dies.
        self._read_end, self._write_end = os.pipe()

    async def _live(self) -> int:
        await self._start("dmesr_server.enricher", ["--parent-fd", str(self._read_end)], [self._read_end])
        assert self._process is not None
        return await self._process.wait()

    def _close(self) -> None:
        os.close(self._read_end)
        os.close(self._write_end)


def child_environment(config: Config, *, secrets: bool) -> Mapping[str, str]:
    """The environment in which `config.load` gives a child just this configuration, flags included.

    Args:
        config: The configuration.
        secrets: With what lets callers in: the token and the certificate.
    """
    sections = config.model_dump(mode="json")
    for secret in () if secrets else ("token", "tls_certificate", "tls_key", "tls_client_ca"):
        sections["server"][secret] = None
    kept = {name: value for name, value in os.environ.items() if not _is_setting(name, sections)}
    return kept | {
        f"DMESR_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in sections.items()
    }


def _is_setting(name: str, sections: Mapping[str, object]) -> bool:
    parts = name.upper().removeprefix("DMESR_").split("__")
    return name.upper().startswith("DMESR_") and parts[0].lower() in sections
