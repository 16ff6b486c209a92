"""An OpenAI-compatible endpoint on a real socket that misbehaves as it is told."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Asked:
    """A request as it came in."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any
    at: float  # time.monotonic

    @property
    def pictures(self) -> list[str]:
        """Data URIs of a chat."""
        contents = [message["content"] for message in self.body["messages"]]
        parts = [part for content in contents if isinstance(content, list) for part in content]
        return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]

    @property
    def words(self) -> str:
        """All that a chat says."""
        contents = [message["content"] for message in self.body["messages"]]
        return " ".join(content if isinstance(content, str) else content[-1]["text"] for content in contents)


@dataclass(frozen=True)
class Reply:
    """What the endpoint answers."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0  # before it answers
    raw: bytes | None = None  # instead of the body's JSON
    cut: bool = False  # the connection, half-way


def failed(status: int, message: str = "broken", *, headers: Mapping[str, str] | None = None, **error: Any) -> Reply:
    """An error as OpenAI words it."""
    return Reply({"error": {"message": message, "type": None, **error}}, status, headers or {})


def chat(text: str = "A quiet film about a lighthouse and its keeper.", **usage: Any) -> Reply:
    """An answer of a chat."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return Reply({"object": "chat.completion", "choices": [choice], "usage": usage})


def talkative(asked: Asked) -> Reply:
    """A chat that counts a token for each word and a hundred for each picture, and says something else each time."""
    said = asked.words.split()
    text = f"A quiet film about a lighthouse, its keeper and number {len(said)}, told in blue and gold."
    return chat(text, prompt_tokens=len(said) + 100 * len(asked.pictures), completion_tokens=len(text.split()))


def embeddings(asked: Asked, *, dim: int = 16) -> Reply:
    """A vector for each text, made from its length, in the format that was asked for; the last one first."""
    rows: list[dict[str, Any]] = []
    for index, text in enumerate(asked.body["input"]):
        vector = np.cos(np.arange(asked.body.get("dimensions", dim)) * (1 + len(text))).astype("<f4") + 2
        as_text = base64.b64encode(vector.tobytes()).decode()
        rows.append(
            {
                "index": index,
                "embedding": as_text if asked.body["encoding_format"] == "base64" else [*map(float, vector)],
            }
        )
    return Reply({"data": rows[::-1], "usage": {"prompt_tokens": 1}})


class Peer:
    """The endpoint. `script` is answered first, one reply for each POST; `answer` makes the rest."""

    def __init__(self) -> None:
        self.models: Reply = Reply({"data": [{"id": "some-vl", "owned_by": "somebody"}]})
        self.version: Reply = failed(404, "no such page")
        self.script: deque[Reply] = deque()
        self.answer: Callable[[Asked], Reply] = talkative
        self.key: str | None = None  # that is asked for
        self.asked: list[Asked] = []
        self.most_in_flight = 0
        self._in_flight = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def posts(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.method == "POST"]

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def heard(self, posts: int) -> None:
        """Waits until so many requests have come in."""
        while len(self.posts) < posts:  # noqa: ASYNC110 - a test may wait like this
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Also cuts what is open."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        content = await reader.readexactly(int(headers.get("content-length", 0)))
        asked = Asked(method, path, headers, json.loads(content) if content else None, time.monotonic())
        self.asked.append(asked)
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            reply = self._reply(asked)
            await asyncio.sleep(reply.seconds)
        finally:
            self._in_flight -= 1
        return await self._write(reply, writer)

    def _reply(self, asked: Asked) -> Reply:
        if asked.path == "/version":
            return self.version
        if self.key is not None and asked.headers.get("authorization") != f"Bearer {self.key}":
            said = asked.headers.get("authorization", "none")
            return failed(401, f"Incorrect API key provided: {said}.", code="invalid_api_key")
        if asked.method == "GET":
            return self.models
        return self.script.popleft() if self.script else self.answer(asked)

    async def _write(self, reply: Reply, writer: asyncio.StreamWriter) -> bool:
        body = json.dumps(reply.body).encode() if reply.raw is None else reply.raw
        kind = "application/json" if reply.raw is None else "text/html"
        lines = [f"HTTP/1.1 {reply.status} x", f"content-length: {len(body)}", f"content-type: {kind}"]
        lines += [f"{name}: {value}" for name, value in reply.headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + (body[: len(body) // 2] if reply.cut else body))
        await writer.drain()
        return not reply.cut
