"""Calls an OpenAI-compatible endpoint, with the patience and the manners that such endpoints ask for.

What is retried: 408, 409, 425, 429 and 5xx, lost connections, calls that take too long, answers that are no JSON or
not what was asked for. After 429, or where the endpoint names a time (Retry-After), every call waits; otherwise only
the one that failed. Keys and texts are never logged, and a key that an endpoint repeats in an error is struck out.

Errors:

    EndpointError
    ├── Refused        this request is not acceptable, and will not become so
    ├── Unauthorised   the key is wrong, missing, or lacks a permission
    ├── OutOfQuota     nothing is left to be spent
    ├── RateLimited    429 until the retries were used up, or for longer than is worth waiting
    ├── Failing        5xx, no answer in time, or nonsense until the retries were used up
    └── Unreachable    no connection until the retries were used up
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import math
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2

from dmesr_server.telemetry import traces

from .openai_told import Told
from .openai_traffic import Traffic

_LOG = logging.getLogger(__name__)
FIRST_PAUSE_SECONDS = 0.5  # before the first retry; doubled for each one after, and shortened by up to a half at random
LONGEST_PAUSE_SECONDS = 60.0
LONGEST_REQUESTED_PAUSE_SECONDS = 900.0  # a daily limit may ask for hours
_CONNECT_SECONDS = 15.0
_RETRIED = frozenset({408, 409, 425, 429})
_GONE = frozenset({502, 503, 504})  # what stands before the endpoint says so
_NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_MESSAGE_CHARACTERS = 300
_TELL_SECONDS = 60.0  # between two lines of the log about pauses

_Read = TypeVar("_Read")


class EndpointError(Exception):
    """A call that did not come to an end. The message says what the endpoint answered, and how often it was asked.

    Attributes:
        status: Of HTTP; 0 where there was no answer.
        told: What the endpoint says.
        others: Whether other calls were answered since the last attempt but one.
    """

    def __init__(self, message: str, *, status: int = 0, told: Told | None = None, others: bool = False):
        super().__init__(message)
        self.status = status
        self.told = told or Told()
        self.others = others


class Refused(EndpointError):  # noqa: N818 - reads as what happened
    """The endpoint does not take the request."""


class Unauthorised(EndpointError):  # noqa: N818
    """Wrong key, no key, or one that lacks a permission."""


class OutOfQuota(EndpointError):  # noqa: N818
    """The account has nothing left to be spent."""


class RateLimited(EndpointError):  # noqa: N818
    """The endpoint turns calls away for longer than they are retried."""


class Failing(EndpointError):  # noqa: N818
    """The endpoint is there and does not manage to answer this call."""


class Unreachable(EndpointError):  # noqa: N818
    """Nobody is there, or connections are cut."""


@dataclass(frozen=True)
class Settings:
    """Where an endpoint is and how it is called.

    Attributes:
        base_url: With the version, for instance "https://api.openai.com/v1".
        api_key_env: The environment variable that holds the key.
        concurrency: The most calls in flight.
        timeout_seconds: Of one attempt, from the first byte sent to the last one received.
        max_retries: Of one call.
    """

    base_url: str
    api_key_env: str
    concurrency: int
    timeout_seconds: float
    max_retries: int


class Malformed(ValueError):  # noqa: N818
    """An answer that is not what the endpoint was asked for. The message says what is missing."""


class _Passing(Exception):  # noqa: N818 - never leaves this file
    """What a retry may help."""

    def __init__(self, what: str, *, why: str = "", kind: type[EndpointError], requested_seconds: float | None = None):
        super().__init__(f"{what} ({why})" if why else what)
        self.what = what  # without the endpoint's words, which may quote what was sent
        self.kind = kind
        self.requested_seconds = requested_seconds

    @property
    def is_for_long(self) -> bool:
        """Whether the endpoint asks for a pause that is not worth waiting for."""
        return (self.requested_seconds or 0) > LONGEST_REQUESTED_PAUSE_SECONDS


class Endpoint:
    """One endpoint. `open` comes before calls; all calls come from one event loop."""

    def __init__(self, settings: Settings):
        """Reads the address; connects to nothing.

        Raises:
            ValueError: `base_url` is no address of HTTP.
        """
        try:
            url = httpx2.URL(settings.base_url)
        except httpx2.InvalidURL as error:
            raise ValueError(f"{settings.base_url!r:.200} is no URL ({error})") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(f"{settings.base_url!r:.200} is no URL that starts with http:// or https:// and a host")
        self._url = url.copy_with(path=url.path.rstrip("/"))
        self._settings = settings
        self._key = ""
        self._told_at = -math.inf  # when a pause was logged last
        self._client: httpx2.AsyncClient | None = None
        self._traffic = Traffic(concurrency=settings.concurrency)
        self.host = url.netloc.decode()  # of messages: without path, query and credentials

    @property
    def has_key(self) -> bool:
        """Whether a key is sent."""
        return bool(self._key)

    def open(self) -> None:
        """Reads the key. Connections are made when they are needed."""
        settings = self._settings
        self._key = os.environ.get(settings.api_key_env, "").strip() if settings.api_key_env else ""
        self._client = httpx2.AsyncClient(
            headers={"authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),  # the time of an attempt is kept by `_attempt`
            limits=httpx2.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency),
        )

    async def close(self) -> None:
        """Closes every connection."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def get(self, path: str, *, read: Callable[[Any], _Read], max_retries: int | None = None) -> _Read:
        """Fetches something below the base URL; as :meth:`post`."""
        return await self._call("GET", path, None, read, max_retries)

    async def post(
        self, path: str, body: Mapping[str, Any], *, read: Callable[[Any], _Read], max_retries: int | None = None
    ) -> _Read:
        """Calls the endpoint.

        Args:
            path: Below the base URL, for instance "chat/completions"; with a slash before it, beside the API's version.
            body: Sent as JSON.
            read: Reads the answer's JSON; raises `Malformed` where it is not what was asked for, which is retried.
            max_retries: Those of the settings where None.

        Raises:
            EndpointError: See the top of this file.
        """
        return await self._call("POST", path, json.dumps(body, ensure_ascii=False).encode(), read, max_retries)

    async def _call(
        self, method: str, path: str, body: bytes | None, read: Callable[[Any], _Read], max_retries: int | None
    ) -> _Read:
        most = self._settings.max_retries if max_retries is None else max_retries
        began = time.monotonic()
        failures, answered = 0, self._traffic.through
        while True:
            async with self._traffic.passage(failures=failures):
                try:
                    answer = read(await self._attempt(method, path, body))
                except (_Passing, Malformed) as error:
                    problem = error if isinstance(error, _Passing) else _Passing(f"answers {error}", kind=Failing)
                    seconds, everybody = _pause(problem, failures)
                    if everybody:
                        self._hold(problem, min(seconds, LONGEST_REQUESTED_PAUSE_SECONDS))
                else:
                    self._traffic.came_through()
                    return answer
            failures += 1
            if failures > most or problem.is_for_long:
                raise self._given_up(problem, failures, began, others=self._traffic.through > answered)
            answered = self._traffic.through
            if not everybody:
                _LOG.debug("%s %s; trying again in %.1f s", self.host, problem, seconds)
                await asyncio.sleep(seconds)

    def _hold(self, problem: _Passing, seconds: float) -> None:
        """Lets every call wait."""
        if self._traffic.pause(seconds) and time.monotonic() - self._told_at > _TELL_SECONDS:
            self._told_at = time.monotonic()
            _LOG.warning("%s %s; every call to it waits for %.1f s", self.host, problem.what, seconds)

    async def _attempt(self, method: str, path: str, body: bytes | None) -> Any:
        if self._client is None:
            raise Unreachable(f"{self.host} is not being called any more")
        seconds = self._settings.timeout_seconds
        headers = {"content-type": "application/json"} if body is not None else {}
        base = self._url.path.rstrip("/")
        url = self._url.copy_with(path=base.removesuffix("/v1") + path if path.startswith("/") else f"{base}/{path}")
        told = {"http.request.method": method, "server.address": url.host, "url.path": url.path}
        with traces.step("ask endpoint", told, kind="CLIENT") as span:
            try:
                async with asyncio.timeout(seconds):
                    response = await self._client.request(method, url, content=body, headers=headers | traces.carrier())
            except TimeoutError as error:
                raise _Passing(f"gave no answer within {seconds:g} s", kind=Failing) from error
            except httpx2.HTTPError as error:
                why = self._struck(str(error)) or type(error).__name__
                raise _Passing(f"cannot be reached: {why}", kind=Unreachable) from error
            span.note({"http.response.status_code": response.status_code})
            return self._read(response)

    def _read(self, response: httpx2.Response) -> Any:
        status = response.status_code
        try:
            content = json.loads(response.content)
        except ValueError:
            content = None
        if response.is_success:
            error = content.get("error") if isinstance(content, Mapping) else None
            if not error:
                if content is None:
                    kind = response.headers.get("content-type", "something").partition(";")[0]
                    raise Malformed(f"{kind} that is no JSON; does the base URL end in /v1?")
                return content
            # Some gateways answer 200 to what their backend refused.
            code = error.get("code") if isinstance(error, Mapping) else None
            status = code if isinstance(code, int) and 400 <= code < 600 else 500
        told = self._told(content)
        why = f"answers {status}" + (f" ({told.message})" if told.message else "")
        if response.is_redirect:
            why += f": it has moved to {self._struck(response.headers.get('location', ''))}; set its base URL to that"
        # A key that has been good is not the reason of a 403: moderation answers so, for instance.
        if status == 401 or (status == 403 and not self._traffic.through):
            raise Unauthorised(f"{self.host} {why}", status=status, told=told)
        if status == 402 or (status == 429 and told.code in _NO_CREDIT):
            raise OutOfQuota(f"{self.host} {why}", status=status, told=told)
        if status in _RETRIED or (status >= 500 and not _is_final(status, told)):
            kinds = {429: RateLimited, **dict.fromkeys(_GONE, Unreachable)}
            raise _Passing(
                f"answers {status}",
                why=told.message,
                kind=kinds.get(status, Failing),
                requested_seconds=_requested_seconds(response.headers),
            )
        raise Refused(f"{self.host} {why}", status=status, told=told)

    def _told(self, content: Any) -> Told:
        error = content.get("error", content) if isinstance(content, Mapping) else content
        if isinstance(error, str):
            return Told(self._struck(error))
        if not isinstance(error, Mapping):
            return Told()
        message = error.get("message") or error.get("detail") or error.get("error") or ""
        names = [str(error[name]) for name in ("code", "type") if error.get(name) and not isinstance(error[name], int)]
        return Told(
            message=self._struck(message if isinstance(message, str) else json.dumps(message)),
            code=names[0] if names else "",
            parameter=str(error.get("param") or ""),
            numbers={name: value for name, value in error.items() if type(value) is int},
        )

    def _struck(self, text: str) -> str:
        """A message in one line of bounded length, without the key."""
        text = text.replace(self._key, "[key]") if self._key else text
        return " ".join(text.split())[:_MESSAGE_CHARACTERS]

    def _given_up(self, problem: _Passing, failures: int, began: float, *, others: bool) -> EndpointError:
        tried = f"asked {failures} times in {time.monotonic() - began:.0f} s" if failures > 1 else "asked once"
        message = f"{self.host} {problem} ({tried})"
        if problem.is_for_long:
            message += f"; it asks for a pause of {problem.requested_seconds:.0f} s"
        return problem.kind(message, others=others)


def _pause(problem: _Passing, failures: int) -> tuple[float, bool]:
    """Seconds until the next attempt, and whether every call has to wait for it."""
    requested = problem.requested_seconds
    if requested:
        return requested + random.uniform(0, min(1.0, 0.1 * requested)), True  # others wait for the same moment
    seconds = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**failures) * random.uniform(0.5, 1)
    return seconds, problem.kind is RateLimited


def _requested_seconds(headers: httpx2.Headers) -> float | None:
    """Retry-After in seconds or as a date, or the milliseconds that some send beside it."""
    try:
        return max(0.0, float(headers["retry-after-ms"]) / 1e3)
    except (KeyError, ValueError):
        pass
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _is_final(status: int, told: Told) -> bool:
    """Whether no retry helps a fault of the server's: llama.cpp answers 500 to a picture that its model cannot see."""
    return status == 501 or told.is_too_long or "not supported" in told.message
