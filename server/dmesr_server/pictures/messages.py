"""What a server process and its decoders say to each other over a socket: a head in JSON and a body of bytes."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any

_LENGTHS = struct.Struct(">IQ")  # bytes of the head, bytes of the body
_MAX_HEAD_BYTES = 1024 * 1024
_PIECE_BYTES = 1024 * 1024
_FIRST_BYTES = 64 * 1024  # that are asked for at first: a small message is whole with them


class BrokenMessage(Exception):  # noqa: N818 - reads as what it is
    """The other side is gone, or says what it should not."""


def send(peer: socket.socket, head: Mapping[str, Any], body: bytes, *, before: Callable[[], None]) -> None:
    """Sends a message.

    Args:
        peer: The other side.
        head: As JSON, 1 MiB at most.
        body: Any number of bytes.
        before: Called before each wait: it sets the socket's timeout, or raises when there is no time left.

    Raises:
        OSError: The other side is gone, or takes too long.
    """
    text = json.dumps(head).encode()
    start = _LENGTHS.pack(len(text), len(body)) + text
    before()
    sent = peer.sendmsg([start, body])  # in one go where it fits: most pictures are small, and the other side waits
    rest = memoryview(start)[sent:]
    while rest:
        before()
        rest = rest[peer.send(rest) :]
    rest = memoryview(body)[max(0, sent - len(start)) :]
    while rest:
        before()
        rest = rest[peer.send(rest[:_PIECE_BYTES]) :]


def receive(
    peer: socket.socket, *, max_body_bytes: int, before: Callable[[], None]
) -> tuple[Mapping[str, Any], bytearray]:
    """Receives a message. The other side says nothing more before it is answered.

    Args:
        peer: The other side.
        max_body_bytes: A longer body is not read.
        before: As for :func:`send`.

    Raises:
        BrokenMessage: The other side has closed, or the message is too long or no JSON object.
        OSError: It takes too long.
    """
    came = _receive_at_least(peer, _LENGTHS.size, bytearray(), before)
    head_bytes, body_bytes = _LENGTHS.unpack_from(came)
    if head_bytes > _MAX_HEAD_BYTES or body_bytes > max_body_bytes:
        raise BrokenMessage(f"a message of {head_bytes} and {body_bytes} bytes")
    start = _LENGTHS.size + head_bytes
    came = _receive_at_least(peer, start, came, before)
    try:
        head = json.loads(bytes(came[_LENGTHS.size : start]))
    except ValueError as error:
        raise BrokenMessage(f"no JSON: {error}") from error
    if not isinstance(head, dict):
        raise BrokenMessage("no JSON object")
    if len(came) - start > body_bytes:
        raise BrokenMessage(f"{len(came) - start - body_bytes} bytes beyond the message")
    body = bytearray(body_bytes)
    body[: len(came) - start] = came[start:]
    rest = memoryview(body)[len(came) - start :]
    while rest:
        before()
        count = peer.recv_into(rest, min(len(rest), _PIECE_BYTES))
        if count == 0:
            raise BrokenMessage("the other side has gone")
        rest = rest[count:]
    return head, body


def _receive_at_least(peer: socket.socket, size: int, came: bytearray, before: Callable[[], None]) -> bytearray:
    while len(came) < size:
        before()
        piece = peer.recv(_FIRST_BYTES)
        if not piece:
            raise BrokenMessage("the other side has gone")
        came += piece
    return came
