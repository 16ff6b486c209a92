"""Several API processes at one port: the parent that starts them, keeps them running and passes on what they tell.

The kernel deals the connections out among the workers (SO_REUSEPORT). The parent holds the port, answers no call and
opens no store, so there is little that it could die of.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from dmesr_server import preflight
from dmesr_server.config import Config, ServerConfig
from dmesr_server.lifecycle import announce, retract, stop_signal
from dmesr_server.machine_folder import machine_folder
from dmesr_server.supervisor import EnricherSupervisor, Supervisor, child_environment
from dmesr_server.worker import READY

_LOG = logging.getLogger(__name__)
_CLOSING_SECONDS = 5.0  # beyond the grace for calls: a worker then closes its stores


async def run(config: Config, *, enricher: bool = True, ready_file: Path | None = None) -> None:
    """Runs the workers until SIGTERM or SIGINT, then drains them.

    Args:
        config: All settings; `server.workers` says how many.
        enricher: Run an enricher beside them.
        ready_file: Gets "HOST:PORT" once every worker answers.

    Raises:
        StartError: The address cannot be used, the platform cannot share a port, or the first worker did not start.
    """
    stopping = stop_signal()
    preflight.check(config, ready_file=ready_file)
    with _reserved(config.server) as port, machine_folder(config) as folder:
        config = config.model_copy(update={"server": config.server.model_copy(update={"port": port})})
        workers: list[_WorkerSupervisor] = []

        def pass_on(sender: _WorkerSupervisor, messages: bytes) -> None:
            for worker in workers:
                if worker is not sender:
                    worker.send(messages)

        workers += [_WorkerSupervisor(config, number, folder, pass_on) for number in range(config.server.workers)]
        supervisors: list[Supervisor] = [
            *workers,
            *([EnricherSupervisor(config)] if enricher and not config.server.read_only else []),
        ]
        running: list[asyncio.Task[None]] = []
        try:
            # The first one alone: it makes and migrates the store, and where it cannot start, one line says why.
            running.append(asyncio.create_task(supervisors[0].run(), name=supervisors[0].name))
            if not await _first(stopping.wait(), workers[0].settled.wait()):
                if not workers[0].ready.is_set():
                    raise WorkerFailed
                running += [asyncio.create_task(one.run(), name=one.name) for one in supervisors[1:]]
                if not await _first(stopping.wait(), asyncio.gather(*(one.ready.wait() for one in workers))):
                    announce(f"{preflight.printable(config.server.host)}:{port}", ready_file)
                    await stopping.wait()
        finally:
            _LOG.info("stopping %d workers", len(workers))
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            retract(ready_file)
            _LOG.info("stopped")


class WorkerFailed(Exception):  # noqa: N818 - it is no fault of the parent's
    """The first worker could not start; it has said why."""


class _WorkerSupervisor(Supervisor):
    """Keeps one worker running.

    Attributes:
        ready: Set once it has answered for the first time.
        settled: Set once it has answered, or ended without.
    """

    def __init__(
        self,
        config: Config,
        number: int,
        folder: Path,
        pass_on: Callable[[_WorkerSupervisor, bytes], None],
    ):
        super().__init__(
            name=f"worker {number}",
            environment=child_environment(config, secrets=True),
            grace_seconds=config.server.grace_seconds + _CLOSING_SECONDS,
        )
        self.ready = asyncio.Event()
        self.settled = asyncio.Event()
        self._number = number
        self._folder = folder
        self._pass_on = pass_on
        self._line: socket.socket | None = None

    def send(self, messages: bytes) -> None:
        """Tells the worker what others told. Where it has not read the last ones yet, these say nothing new."""
        if self._line is not None:
            with contextlib.suppress(OSError):
                self._line.send(messages)

    async def _live(self) -> int:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours:
            with theirs:
                fd = theirs.fileno()
                flags = ["--line-fd", str(fd), "--number", str(self._number), "--folder", str(self._folder)]
                await self._start("dmesr_server.worker", flags, [fd])
            assert self._process is not None
            self._line = ours
            listening = asyncio.create_task(self._listen(ours))
            try:
                return await self._process.wait()
            finally:
                self._line = None
                listening.cancel()
                self.settled.set()

    async def _listen(self, line: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while heard := await loop.sock_recv(line, 4096):
                if READY in heard:
                    self.ready.set()
                    self.settled.set()
                if others := bytes(sorted(set(heard) - set(READY))):
                    self._pass_on(self, others)


async def _first(stop: object, other: object) -> bool:
    """Waits for one of two; True when it is the first."""
    waiting = [asyncio.ensure_future(one) for one in (stop, other)]  # type: ignore[call-overload]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for one in waiting:
        one.cancel()
    return bool(waiting[0].done() and not waiting[0].cancelled())


@contextlib.contextmanager
def _reserved(config: ServerConfig) -> Iterator[int]:
    """The port, bound but not listened at: it stays ours while workers come and go, and 0 is one port for all.

    Raises:
        StartError: The platform has no SO_REUSEPORT, or the address cannot be used.
    """
    option = getattr(socket, "SO_REUSEPORT", None)
    try:
        if option is None:
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        holder = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_share(config, error) from error
    with holder:
        try:
            holder.setsockopt(socket.SOL_SOCKET, option, 1)
            holder.bind(address)
        except OSError as error:
            raise _cannot_share(config, error) from error
        yield int(holder.getsockname()[1])


def _cannot_share(config: ServerConfig, error: OSError) -> preflight.StartError:
    if error.errno in (errno.ENOPROTOOPT, errno.EINVAL):
        return preflight.StartError(
            f"--workers {config.workers}: processes cannot share a port on this platform (no SO_REUSEPORT); use "
            "--workers 1, or run several servers on ports of their own behind a proxy"
        )
    return preflight.cannot_listen(config, error)
