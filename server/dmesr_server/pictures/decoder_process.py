"""A process that decodes pictures and may do nothing else: `python -m dmesr_server.pictures.decoder_process`.

Decoders are C code that reads whatever strangers send. This process holds no secret and no connection; once it is ready
it can open no file and no socket, write nothing, start nothing, and has a bounded memory. Its one socket is its
standard input. It ends when the other end of that closes.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import math
import os
import resource
import select
import socket
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dmesr_server.pictures import decoding, messages

_NO_NEW_PRIVILEGES = 38  # PR_SET_NO_NEW_PRIVS
_MIB = 1024 * 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Answers until the other side closes the socket."""
    parser = argparse.ArgumentParser(prog="python -m dmesr_server.pictures.decoder_process", description=__doc__)
    parser.add_argument("--memory-mib", type=int, required=True, help="address space beyond what it has at its start")
    parser.add_argument("--cpu-seconds", type=float, required=True, help="of one picture")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    Image.init()  # every plugin: none can be imported later
    peer = socket.socket(fileno=os.dup(0))
    threading.Thread(target=_end_with_parent, args=[peer.fileno()], daemon=True).start()
    _shut_in(given.memory_mib * _MIB)
    messages.send(peer, {"ready": os.getpid()}, b"", before=_at_leisure)
    while True:
        try:
            asked, data = messages.receive(peer, max_body_bytes=sys.maxsize, before=_at_leisure)
        except (messages.BrokenMessage, OSError):
            os._exit(0)
        _allow_cpu(given.cpu_seconds)
        head, pixels = _answer(asked, data)
        messages.send(peer, head, pixels, before=_at_leisure)


def _answer(asked: Mapping[str, Any], data: bytearray) -> tuple[Mapping[str, Any], bytes]:
    max_pixels = int(asked["max_pixels"])
    try:
        if asked["task"] == "inspect":
            ends = list(itertools.accumulate(asked["sizes"], initial=0))
            told = [_told(bytes(data[start:end]), max_pixels) for start, end in itertools.pairwise(ends)]
            return {"pictures": told}, b""
        picture = decoding.decode(bytes(data), max_pixels, shrink_to_pixels=asked["shrink_to_pixels"])
        return {"width_px": picture.width, "height_px": picture.height}, picture.tobytes()
    except decoding.UnusablePicture as error:
        return _refused(error), b""
    except MemoryError:
        gc.collect()
        return {"out_of_memory": True}, b""


def _told(data: bytes, max_pixels: int) -> Mapping[str, Any]:
    try:
        info = decoding.inspect(data, max_pixels)
    except decoding.UnusablePicture as error:
        return _refused(error)
    return {"media_type": info.media_type, "width_px": info.width_px, "height_px": info.height_px}


def _refused(error: decoding.UnusablePicture) -> Mapping[str, Any]:
    return {"reason": error.reason, "message": error.message[:1000], "metadata": error.metadata}


def _at_leisure() -> None:
    """Waits as long as it takes: the other side keeps the time."""


def _end_with_parent(descriptor: int) -> None:
    """Ends the process when the other end closes, also in the middle of a picture. Never returns."""
    closing = select.poll()
    closing.register(descriptor, 0)  # only that it was hung up
    closing.poll()
    os._exit(0)


def _shut_in(memory_bytes: int) -> None:
    """Gives up for good what decoding does not need. What a platform does not know is left out."""
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    sys.stdout.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # decoders complain there, as often as a picture makes them
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 1,  # what is open stays open, nothing new opens; with 0, poll() refuses to watch any
        resource.RLIMIT_AS: _address_space_bytes() + memory_bytes,
    }
    if hasattr(resource, "RLIMIT_NPROC"):
        limits[resource.RLIMIT_NPROC] = 0  # root is exempt
    for limit, value in limits.items():
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, (value, value))


def _address_space_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 1024 * _MIB


def _allow_cpu(seconds: float) -> None:
    """The kernel ends the process when it has used so much more processor time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    until = math.ceil(used.ru_utime + used.ru_stime + seconds)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (until, hard))


if __name__ == "__main__":
    main()
