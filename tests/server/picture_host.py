"""A real HTTP server for tests that hands out pictures, and what else a host may say."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from enriching import picture

RED = (200, 30, 20)
BLUE = (10, 20, 220)
#: Longer than any test lets a fetch take; the host's threads end with it, or when whoever asked goes away.
_PATIENCE_SECONDS = 30.0


class Asking(BaseHTTPRequestHandler):
    """One request to a `PictureHost`, with ways to answer it."""

    host: PictureHost
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answers as the host was told for this path."""
        self.close_connection = True
        self.host.asked.append((self.headers["Host"], self.path))
        try:
            self.host.answers.get(self.path.partition("?")[0], Asking.missing)(self)
        except (ConnectionError, ssl.SSLError):
            self.host.gave_up.set()

    def missing(self) -> None:
        """404."""
        self.say(404, b"no such picture", kind="text/plain")

    def say(
        self, status: int, body: bytes, *, kind: str = "image/png", last: bool | None = True, **headers: str
    ) -> None:
        """A whole answer.

        Args:
            status: Of HTTP.
            body: All of it.
            kind: Content type.
            last: Whether the connection ends with it; None ends it and does not say so.
            **headers: Others, or others' values.
        """
        self.send_response(status)
        if last:
            self.send_header("Connection", "close")
        self.close_connection = last is not False
        self.send_header("Content-Type", kind)
        headers.setdefault("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def begin(self, *, kind: str = "image/png") -> None:
        """The head of an answer that ends when the connection does."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keeps quiet."""


class PictureHost:
    """Listens on a loopback address; `answers` says what each path does.

    Attributes:
        answers: By path, without the query.
        asked: Host header and path of every request.
        gave_up: Set when somebody went away in the middle of an answer.
        most_pondering: Requests that were in `ponder` at the same time.
    """

    def __init__(self, *, address: str = "127.0.0.1", port: int = 0, certificate: Path | None = None):
        self.answers: dict[str, Callable[[Asking], None]] = {
            "/red.png": lambda asking: asking.say(200, picture(RED)),
            "/blue.png": lambda asking: asking.say(200, picture(BLUE)),
        }
        self.asked: list[tuple[str, str]] = []
        self.gave_up = threading.Event()
        self.most_pondering = 0
        self._pondering = 0
        self._ending = threading.Event()
        self._lock = threading.Lock()
        handler = type("_Asking", (Asking,), {"host": self})
        self._server = ThreadingHTTPServer((address, port), handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, certificate.with_suffix(".key"))
            # The handshake belongs to the request's own thread: one that fails must not end the server.
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._server.handle_error = lambda request, client: None  # type: ignore[method-assign]
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=[0.02], daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def redirect(self, path: str, to: str, *, status: int = 302) -> None:
        """Makes a path lead elsewhere."""
        self.answers[path] = lambda asking: asking.say(status, b"", Location=to)

    def drip(self, asking: Asking) -> None:
        """A body that never gets anywhere, a byte at a time."""
        asking.begin()
        for _ in range(int(_PATIENCE_SECONDS / 0.02)):
            asking.wfile.write(b"\x89")
            if self._ending.wait(0.02):
                return

    def pour(self, asking: Asking) -> None:
        """A body without an end, as fast as it is taken."""
        asking.begin()
        while not self._ending.is_set():
            asking.wfile.write(b"\0" * 65536)

    def say_nothing(self, asking: Asking) -> None:
        """No answer at all."""
        self._ending.wait(_PATIENCE_SECONDS)

    def ponder(self, asking: Asking) -> None:
        """A picture after a moment. Who ponders is counted."""
        with self._lock:
            self._pondering += 1
            self.most_pondering = max(self.most_pondering, self._pondering)
        self._ending.wait(0.1)
        with self._lock:
            self._pondering -= 1
        asking.say(200, picture(RED))

    def close(self) -> None:
        """Stops listening; answers under way end."""
        self._ending.set()
        self._server.shutdown()
        self._server.server_close()


def unused_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
