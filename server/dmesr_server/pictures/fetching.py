"""Fetches pictures from hosts that the configuration allows, and from nowhere that a stranger's URI could lead to.

The connection goes to the address that was checked: names are resolved here, once for each connection. Redirects are
followed here, each held against the same rules. Below is httpcore alone, so there are no cookies, no proxies, no
credentials and no decompression that would have to be switched off.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore2
import httpx2

from dmesr_server.errors import ServiceError
from dmesr_server.pictures import addresses
from dmesr_server.pictures.settings import FetchingConfig

_MAX_URI_CHARACTERS = 4096
_SHOWN_CHARACTERS = 500
_CONNECT_SECONDS = 5.0  # to one of a host's addresses
_ADDRESSES = 4  # of a host that are tried
_KEEP_SECONDS = 5.0  # a connection without work
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PORTS = {"https": 443, "http": 80}
_HOST = re.compile(r"[a-z0-9_.-]+|[0-9a-f:.]+")
_HEADERS = ((b"accept", b"image/*"), (b"accept-encoding", b"identity"), (b"user-agent", b"dmesr"))
#: What is no picture by its name, but what object stores call everything.
_NAMELESS = ("application/octet-stream", "binary/octet-stream")


def is_fetched(uri: str) -> bool:
    """Whether a URI is one of http or https."""
    return uri[:8].lower().startswith(("http://", "https://"))


def shown(uri: str) -> str:
    """A URI for messages and logs: without what may be a secret, which are credentials and the query."""
    if not is_fetched(uri):
        return uri[:_SHOWN_CHARACTERS]
    try:
        parts = urlsplit(uri)
    except ValueError:
        return f"{uri.partition('://')[0]}://…"
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}{'?…' if parts.query else ''}"[:_SHOWN_CHARACTERS]


class _ForbiddenAddressError(Exception):
    """The host's name leads to an address that may not be reached."""


class _UnresolvedError(Exception):
    """The host has no address."""


@dataclass(frozen=True)
class _Place:
    """A URI that was checked."""

    url: httpcore2.URL
    host_header: bytes


class Fetcher:
    """Fetches pictures for one event loop."""

    def __init__(self, *, config: FetchingConfig, max_picture_bytes: int):
        """Opens nothing yet.

        Args:
            config: From where, and how much.
            max_picture_bytes: A second limit on a picture's bytes, the smaller one holds.
        """
        self._config = config
        self.max_bytes = min(config.max_bytes, max_picture_bytes)
        self._slots = asyncio.Semaphore(config.concurrency)
        self._resolving = ThreadPoolExecutor(config.concurrency, thread_name_prefix="resolving")
        self._connections: httpcore2.AsyncConnectionPool | None = None

    @property
    def is_on(self) -> bool:
        """Whether anything may be fetched."""
        return bool(self._config.hosts)

    @property
    def concurrency(self) -> int:
        """Fetches at a time."""
        return self._config.concurrency

    @property
    def batch_seconds(self) -> float:
        """How long all pictures of one batch may take."""
        return self._config.batch_seconds

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Waits until fewer than `concurrency` fetches of this process are held in memory."""
        async with self._slots:
            yield

    async def fetch(self, uri: str) -> bytes:
        """Fetches what is to be a picture. Whether it is one is for a decoder to say.

        Raises:
            ServiceError: PICTURE_URI_NOT_ALLOWED, PICTURE_TOO_LARGE or PICTURE_FETCH_FAILED.
        """
        seconds = self._config.seconds
        try:
            async with asyncio.timeout(seconds):
                return await self._followed(uri)
        except TimeoutError as error:
            raise failed(uri, f"took longer than {seconds:g} s (pictures.fetching.seconds)") from error
        except _ForbiddenAddressError as error:
            raise _not_allowed(
                uri, "leads to an address that is not public; pictures.fetching.private_networks may allow it"
            ) from error
        except _UnresolvedError as error:
            raise failed(uri, "names a host that has no address") from error
        except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError, OSError) as error:
            raise failed(uri, f"cannot be fetched: {type(error).__name__} {error}"[:300]) from error

    async def close(self) -> None:
        """Closes every connection."""
        connections, self._connections = self._connections, None
        if connections is not None:
            await connections.aclose()
        self._resolving.shutdown(wait=False, cancel_futures=True)

    async def _followed(self, uri: str) -> bytes:
        place, earlier = uri, None
        for _ in range(self._config.max_redirects + 1):
            checked = self._checked(place, asked=uri)
            scheme = checked.url.scheme.decode()
            if earlier == "https" and scheme == "http":
                raise _not_allowed(uri, "is redirected from https to http")
            answer = await self._got(checked, asked=uri)
            if isinstance(answer, bytes):
                return answer
            try:
                place, earlier = urljoin(place, answer), scheme
            except ValueError as error:
                raise failed(uri, "is redirected to what is no URI") from error
        raise failed(
            uri, f"is redirected more than {self._config.max_redirects} times (pictures.fetching.max_redirects)"
        )

    def _checked(self, place: str, *, asked: str) -> _Place:
        """The URI in pieces, so that what is checked and what is connected to are the same.

        Raises:
            ServiceError: PICTURE_URI_NOT_ALLOWED.
        """
        config = self._config
        if len(place) > _MAX_URI_CHARACTERS:
            raise _not_allowed(asked, f"or what it is redirected to has more than {_MAX_URI_CHARACTERS} characters")
        try:
            url = httpx2.URL(place)
            host = url.raw_host.decode("ascii").lower().rstrip(".")
        except (httpx2.InvalidURL, ValueError) as error:
            raise _not_allowed(asked, f"or what it is redirected to is no URI ({type(error).__name__})") from error
        if url.scheme not in config.schemes:
            raise _not_allowed(asked, f"has the scheme {url.scheme!r:.50}, allowed is {_told(config.schemes)}")
        if url.userinfo:
            raise _not_allowed(asked, "holds credentials, which the server does not send")
        if not _HOST.fullmatch(host) or not self._may_ask(host):
            raise _not_allowed(
                asked,
                f"names the host {host!r:.260}, which is not in pictures.fetching.hosts; upload the bytes instead",
            )
        port = _PORTS[url.scheme] if url.port is None else url.port
        if port not in config.ports:
            raise _not_allowed(
                asked, f"names the port {port}, allowed is {_told(config.ports)} (pictures.fetching.ports)"
            )
        return _Place(
            httpcore2.URL(scheme=url.scheme.encode(), host=host.encode(), port=port, target=url.raw_path), url.netloc
        )

    def _may_ask(self, host: str) -> bool:
        return any(
            host.endswith(allowed[1:]) if allowed.startswith("*.") else host == allowed.strip("[]")
            for allowed in self._config.hosts
        )

    async def _got(self, place: _Place, *, asked: str) -> bytes | str:
        """The body, or where it is redirected to."""
        try:
            return await self._got_once(place, asked=asked)
        except (httpcore2.ReadError, httpcore2.WriteError, httpcore2.RemoteProtocolError):
            # The host may have closed a connection that was kept, just when it was needed again.
            return await self._got_once(place, asked=asked)

    async def _got_once(self, place: _Place, *, asked: str) -> bytes | str:
        headers_sent = [(b"host", place.host_header), *_HEADERS]
        async with self._pool().stream("GET", place.url, headers=headers_sent) as response:
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status in _REDIRECTS and "location" in headers:
                return headers["location"]
            if response.status != 200:
                raise failed(asked, f"answers {response.status}", status=response.status)
            coding = headers.get("content-encoding", "identity").lower()
            if coding != "identity":
                raise failed(asked, f"is sent compressed ({coding!r:.50}) though this was not asked for")
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind and not kind.startswith("image/") and kind not in _NAMELESS:
                raise failed(asked, f"is of the type {kind!r:.100}, which is no picture", content_type=kind[:100])
            length = headers.get("content-length", "")
            if length.isdecimal() and int(length) > self.max_bytes:
                raise self._too_large(asked, length)
            body = bytearray()
            async for piece in response.aiter_stream():
                body += piece
                if len(body) > self.max_bytes:
                    raise self._too_large(asked, f"at least {len(body)}")
            return bytes(body)

    def _too_large(self, uri: str, size: str) -> ServiceError:
        return ServiceError(
            "PICTURE_TOO_LARGE",
            f"{shown(uri)!r} has {size} bytes, at most {self.max_bytes} (pictures.fetching.max_bytes, "
            "limits.max_picture_bytes) are fetched; name a smaller one",
            uri=shown(uri),
            expected=self.max_bytes,
            actual=size,
        )

    def _pool(self) -> httpcore2.AsyncConnectionPool:
        if self._connections is None:
            ca = self._config.ca
            self._connections = httpcore2.AsyncConnectionPool(
                ssl_context=httpcore2.default_ssl_context()
                if ca is None
                else ssl.create_default_context(cafile=str(ca)),
                max_connections=self._config.concurrency,
                keepalive_expiry=_KEEP_SECONDS,
                retries=0,
                network_backend=_CheckedNetwork(self._config, self._resolving),
            )
        return self._connections


class _CheckedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects to addresses that are allowed. TLS is made above it, with the host's name."""

    def __init__(self, config: FetchingConfig, resolving: ThreadPoolExecutor):
        self._config = config
        self._resolving = resolving
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Resolves, checks every address that comes, and connects to the first one that answers."""
        loop = asyncio.get_running_loop()
        try:
            # Not the loop's own threads: a slow resolver may not take those of all other calls.
            found = await loop.run_in_executor(
                self._resolving, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            )
        except (OSError, UnicodeError) as error:
            raise _UnresolvedError from error
        resolved = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not all(
            addresses.is_allowed(address, private_networks=self._config.private_networks) for address in resolved
        ):
            raise _ForbiddenAddressError
        problem: Exception = _UnresolvedError()
        for address in resolved[:_ADDRESSES]:
            try:
                return await self._network.connect_tcp(
                    address, port, timeout=_CONNECT_SECONDS, socket_options=socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                problem = error
        raise problem

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        """Never."""
        raise _ForbiddenAddressError

    async def sleep(self, seconds: float) -> None:
        """Sleeps."""
        await asyncio.sleep(seconds)


def failed(uri: str, why: str, **metadata: str | int) -> ServiceError:
    """A picture that its host did not give; the item keeps the one that it had."""
    return ServiceError(
        "PICTURE_FETCH_FAILED",
        f"{shown(uri)!r} {why}; the item keeps the picture that it had: send it again later, or upload the bytes",
        violations=(),
        retry_seconds=None,
        uri=shown(uri),
        **metadata,
    )


def _not_allowed(uri: str, why: str) -> ServiceError:
    return ServiceError("PICTURE_URI_NOT_ALLOWED", f"{shown(uri)!r} {why}", uri=shown(uri))


def _told(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)
