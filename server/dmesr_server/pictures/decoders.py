"""Has pictures decoded by processes of their own: one that crashes, hangs or swells costs its picture and nothing else.

A process takes one picture after the other over a socket, and gives back what its header says or plain RGB of a size
that is checked here. It is believed nothing: a picture may have taken it over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from PIL import Image

from dmesr_server.errors import ServiceError
from dmesr_server.pictures import answers, messages
from dmesr_server.pictures.info import PictureInfo
from dmesr_server.pictures.settings import DecodingConfig

_LOG = logging.getLogger(__name__)
_START_SECONDS = 120.0  # a loaded machine needs some
_END_SECONDS = 5.0
_MODULE = "dmesr_server.pictures.decoder_process"
#: What a process of Python needs to find its modules. Nothing else of the environment is handed on: it holds secrets.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG")
_TRIES = 2  # processes that a picture is given to
_TOGETHER = 128  # pictures whose headers are read for one question
_TOGETHER_BYTES = 16 * 1024 * 1024

_Answer = TypeVar("_Answer")


class DecodersUnavailableError(Exception):
    """No process can be started: no fault of the picture's. The message says why."""


class _FailedError(Exception):
    """A process ended, hung or swelled under what it was given. The message says how, after "the process"."""


class Decoders:
    """A few processes that decode pictures. Safe to call from several threads; each call blocks."""

    def __init__(self, *, config: DecodingConfig, workers: int):
        """Starts nothing yet: a process is started when it is first needed.

        Args:
            config: What one picture may cost.
            workers: Processes at most.
        """
        self._config = config
        self._free = threading.Semaphore(workers)
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._closed = False

    @property
    def idle_pids(self) -> tuple[int, ...]:
        """The processes that wait for a picture."""
        with self._lock:
            return tuple(process.pid for process in self._idle)

    def inspect_all(self, pictures: Sequence[bytes], *, max_pixels: int) -> list[PictureInfo | ServiceError]:
        """Reads the headers of pictures; touches no pixel.

        A process is asked about many at a time: most headers take less than the question. One that it does not survive
        is found by asking again about each.

        Args:
            pictures: Their bytes.
            max_pixels: A picture with more is refused.

        Returns:
            For each, in order, its header or PICTURE_UNREADABLE, PICTURE_TOO_MANY_PIXELS or PICTURE_DECODER_FAILED.

        Raises:
            DecodersUnavailableError: No process can be started.
        """
        found: list[PictureInfo | ServiceError] = []
        for group in _groups(pictures):
            try:
                found += self._inspected(group, max_pixels=max_pixels, tries=1 if len(group) > 1 else _TRIES)
            except _FailedError:
                for data in group:
                    try:
                        found += self._inspected([data], max_pixels=max_pixels, tries=_TRIES)
                    except _FailedError as error:
                        found.append(_failed(error, data))
        return found

    def decode(self, data: bytes, *, max_pixels: int, shrink_to_pixels: int | None = None) -> Image.Image:
        """Reads a picture's pixels: the first frame, upright, as RGB, transparency on white.

        Args:
            data: The picture's bytes.
            max_pixels: A picture with more is refused.
            shrink_to_pixels: Scale down to about this many pixels, keeping the aspect; never up. None keeps the size.

        Returns:
            A picture of mode "RGB".

        Raises:
            ServiceError: PICTURE_UNREADABLE (cut short, broken, an unknown format), PICTURE_TOO_MANY_PIXELS or
                PICTURE_DECODER_FAILED.
            DecodersUnavailableError: No process can be started.
        """
        task = {"task": "decode", "max_pixels": max_pixels, "shrink_to_pixels": shrink_to_pixels}
        try:
            return self._asked(
                task,
                data,
                max_body_bytes=answers.CHANNELS * max_pixels,
                read=partial(answers.decoded, max_pixels=max_pixels),
                tries=_TRIES,
            )
        except _FailedError as error:
            raise _failed(error, data) from error

    def close(self) -> None:
        """Ends the processes; those at work when their picture is done."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for process in idle:
            process.end()

    def _inspected(self, pictures: Sequence[bytes], *, max_pixels: int, tries: int) -> list[PictureInfo | ServiceError]:
        task = {"task": "inspect", "max_pixels": max_pixels, "sizes": [len(data) for data in pictures]}
        read = partial(answers.inspected, count=len(pictures), max_pixels=max_pixels)
        return self._asked(task, b"".join(pictures), max_body_bytes=0, read=read, tries=tries)

    def _asked(
        self,
        task: Mapping[str, Any],
        data: bytes,
        *,
        max_body_bytes: int,
        read: Callable[[Mapping[str, Any], bytearray], _Answer],
        tries: int,
    ) -> _Answer:
        """One answer of a process.

        A process that ends under a picture may have been ended by somebody else. Only a second one is the picture's
        fault.

        Raises:
            _FailedError: A process failed over it.
            ServiceError: What a sound process has against the picture.
        """
        with self._free:
            for tried in range(1, tries + 1):
                process = self._process()
                try:
                    head, body = process.ask(task, data, max_body_bytes=max_body_bytes)
                    out_of_memory = bool(head.get("out_of_memory"))
                    answer = None if out_of_memory else read(head, body)
                except ServiceError:
                    self._back(process)
                    raise
                except (messages.BrokenMessage, OSError) as error:
                    how, again = process.post_mortem(error, self._config)
                    _LOG.warning("a decoder %s under %d bytes of pictures", how, len(data))
                    if tried == tries or not again:
                        raise _FailedError(how) from error
                    continue
                except BaseException:
                    process.end()
                    raise
                if answer is None:
                    process.end()  # what is left of its memory is in pieces
                    raise _FailedError(f"needed more than {self._config.memory_mib} MiB (pictures.decoding.memory_mib)")
                self._back(process)
                return answer
        raise AssertionError("the last attempt returns or raises")

    def _process(self) -> _Process:
        while True:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            if process is None:
                try:
                    return _Process(self._config)
                except DecodersUnavailableError as error:
                    _LOG.warning("%s; once more", error)
                    return _Process(self._config)
            if process.is_alive:
                return process
            process.end()

    def _back(self, process: _Process) -> None:
        with self._lock:
            kept = not self._closed and process.pictures < self._config.pictures_per_worker
            if kept:
                self._idle.append(process)
        if not kept:
            process.end()


class _Process:
    """One process and this end of its socket."""

    def __init__(self, config: DecodingConfig):
        self.pictures = 0  # that it has answered
        self._seconds = config.seconds
        self._deadline = 0.0
        command = [sys.executable, "-P", "-m", _MODULE, "--memory-mib", str(config.memory_mib)]
        command += ["--cpu-seconds", str(config.cpu_seconds)]
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._socket, theirs = socket.socketpair()
        self._process: subprocess.Popen[bytes]
        try:
            with theirs:
                self._process = subprocess.Popen(
                    command,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=environment,
                    start_new_session=True,  # Ctrl-C is for this process, which ends its children in order
                )
        except OSError as error:
            self._socket.close()
            raise DecodersUnavailableError(f"no process can be started to decode pictures: {error.strerror}") from error
        try:
            self._deadline = time.monotonic() + _START_SECONDS
            messages.receive(self._socket, max_body_bytes=0, before=self._wait)
        except (messages.BrokenMessage, OSError) as error:
            self.end()
            raise DecodersUnavailableError(
                f"the process that decodes pictures ended with code {self._process.returncode} at its start ({error}); "
                "its words are in the log"
            ) from error

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, task: Mapping[str, Any], data: bytes, *, max_body_bytes: int) -> tuple[Mapping[str, Any], bytearray]:
        """One question and its answer; raises `BrokenMessage` or OSError."""
        self.pictures += 1
        self._deadline = time.monotonic() + self._seconds
        messages.send(self._socket, task, data, before=self._wait)
        return messages.receive(self._socket, max_body_bytes=max_body_bytes, before=self._wait)

    def post_mortem(self, error: Exception, config: DecodingConfig) -> tuple[str, bool]:
        """Ends it; how it failed, and whether the picture deserves another try."""
        if isinstance(error, TimeoutError):
            self.end()
            return f"took longer than {config.seconds:g} s (pictures.decoding.seconds)", False
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        code = self._process.returncode
        self.end()
        if code == -signal.SIGXCPU:
            return f"needed more than {config.cpu_seconds:g} s of processor time (pictures.decoding.cpu_seconds)", False
        if code is None:
            return f"answered nonsense ({error})", False
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}", True

    def end(self) -> None:
        """Ends it, whatever it does."""
        self._socket.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def _wait(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)


def _groups(pictures: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """As many together as a process takes."""
    group: list[bytes] = []
    size = 0
    for data in pictures:
        if group and (size + len(data) > _TOGETHER_BYTES or len(group) == _TOGETHER):
            yield group
            group, size = [], 0
        group.append(data)
        size += len(data)
    if group:
        yield group


def _failed(error: _FailedError, data: bytes) -> ServiceError:
    return ServiceError(
        "PICTURE_DECODER_FAILED",
        f"the picture of {len(data)} bytes cannot be decoded: the process that tried {error}; send it in another "
        "format, or smaller",
        bytes=len(data),
        how=str(error),
    )
