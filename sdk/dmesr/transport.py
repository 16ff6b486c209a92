"""How calls reach the server: channels, credentials, deadlines and retries. Everything here is async.

Only what may safely happen twice is tried again when the server was unavailable: reads, and writes that the wire makes
idempotent. What the server refused for want of room (OVERLOADED) is tried again whatever it is, as it was not begun. A
bidirectional stream is never resumed half-way.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from dmesr.connection import TLS, Timeout
from dmesr.errors import (
    ApiError,
    ClientClosed,
    DeadlineExceeded,
    DmesrError,
    InvalidInput,
    Overloaded,
)
from dmesr.retrying import Resendable, RetryPolicy, retrying
from dmesr.rpc_errors import from_rpc
from dmesr.status import final_status, with_first_status
from dmesr.tracing import Tracing, Wanted
from dmesr.v1 import admin_pb2

T = TypeVar("T")
Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)
Tag = TypeVar("Tag")

# A batch is cut below this even where the server would take more: room for what is not counted.
_MESSAGE_BYTES = 3 * 1024 * 1024
_CHUNK_BYTES = 1024 * 1024
# Batches of a stream that may be unanswered at a time.
_WINDOW = 4


@dataclass(frozen=True)
class Rpc(Generic[Req, Resp]):
    """One call of the wire."""

    name: str  # "Service/Method" of package dmesr.v1
    request: type[Req]
    response: type[Resp]
    idempotent: bool = False  # may be sent twice
    decode: Callable[[bytes], Any] | None = None  # in the place of protobuf, where its copies are too dear
    encode: Callable[[Any], bytes] | None = None  # likewise

    @property
    def path(self) -> str:
        """The full method name."""
        return f"/dmesr.v1.{self.name}"


SERVER_INFO = Rpc(
    "AdminService/GetServerInfo", admin_pb2.GetServerInfoRequest, admin_pb2.GetServerInfoResponse, idempotent=True
)


@dataclass(frozen=True)
class _Pool:
    """The channels of one event loop."""

    channels: list[grpc.aio.Channel]
    turns: Iterator[grpc.aio.Channel]


class Transport:
    """The connection to one server, shared by all that a client binds.

    Channels belong to an event loop, so each loop that uses the transport gets its own: a client outlives the
    `asyncio.run` in which it was first used.
    """

    def __init__(
        self,
        target: str,
        *,
        token: str | None,
        tls: bool | TLS | None,
        timeout: Timeout,
        retry: RetryPolicy,
        channels: int,
        tracing: Wanted = None,
    ) -> None:
        if not target or "://" in target:
            raise InvalidInput(f"target is {target!r}; expected HOST:PORT, for instance 127.0.0.1:50051")
        if channels < 1:
            raise InvalidInput(f"channels is {channels}; expected 1 or more")
        self.target = target
        self.timeout = timeout
        self.retry = retry
        self._tls = TLS() if tls is True else tls or None
        self._credentials = self._tls.credentials() if self._tls is not None else None
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._tracing = Tracing(tracing, target=target, metadata=metadata)
        self._channels = channels
        self._pools: dict[asyncio.AbstractEventLoop, _Pool] = {}
        self._limits: admin_pb2.Limits | None = None
        self._closed = False

    def _channel(self) -> grpc.aio.Channel:
        if self._closed:
            raise ClientClosed("the client is closed; connect again")
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            # Channels of a closed loop can do nothing more; grpc closes them when they are collected.
            self._pools = {other: pool for other, pool in self._pools.items() if not other.is_closed()}
            channels = [self._open_channel() for _ in range(self._channels)]
            pool = self._pools[loop] = _Pool(channels=channels, turns=itertools.cycle(channels))
        # A channel that has just failed to connect fails the next call at once, for half a second; another may have
        # found the server again. Where all have failed, one call says so.
        for channel in itertools.islice(pool.turns, len(pool.channels)):
            if channel.get_state(try_to_connect=True) is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                return channel
        return next(pool.turns)

    def _open_channel(self) -> grpc.aio.Channel:
        options: list[tuple[str, Any]] = [
            # The server bounds what it sends; a page of a thousand long items may pass grpc's 4 MiB.
            ("grpc.max_receive_message_length", -1),
            # A pool is several connections only if its channels do not share one.
            ("grpc.use_local_subchannel_pool", 1),
            # A restarted server is found again within our own pauses, which add up to 0.75 s at least; grpc's own
            # would grow to 120 s, and every attempt within one fails at once. Its third setting, of the least backoff,
            # is left alone: against its name it is how long a connection may take to be made (20 s).
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 500),
        ]
        if self._tls is not None and self._tls.server_name_override:
            options.append(("grpc.ssl_target_name_override", self._tls.server_name_override))
        if self._credentials is None:
            return grpc.aio.insecure_channel(self.target, options=options)
        return grpc.aio.secure_channel(self.target, self._credentials, options=options)

    async def close(self) -> None:
        """Ends the calls under way and closes the channels. Closing twice is fine."""
        self._closed = True
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        self._pools.clear()  # those of other loops cannot be closed from here; grpc does when they are collected
        for channel in pool.channels if pool is not None else ():
            await channel.close(None)

    @contextlib.asynccontextmanager
    async def _errors(self, name: str, seconds: float | None, call: grpc.aio.Call) -> AsyncIterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            told = await final_status(call, error)
            if told.code() is grpc.StatusCode.OK:  # the server ended the call, content, while we were writing
                raise _cut_short(name, self.target) from error
            raise from_rpc(told, target=self.target, call=name, seconds=seconds) from error
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"{name} at {self.target} sent nothing for {seconds:g} s; allow more by connect(timeout=Timeout(…))"
            ) from error
        except (asyncio.CancelledError, grpc.aio.UsageError) as error:
            # Closing the channel cancels its calls; to the caller that is no cancellation of its own task.
            task = asyncio.current_task()
            if self._closed and not (task is not None and task.cancelling()):
                raise ClientClosed(f"the client was closed during {name}") from error
            raise

    async def retrying(
        self, attempt: Callable[[float | None], Awaitable[T]], *, seconds: float | None, idempotent: bool
    ) -> T:
        """Runs `attempt` by the client's policy; see :func:`dmesr.retrying.retrying`."""
        return await retrying(attempt, policy=self.retry, seconds=seconds, idempotent=idempotent)

    async def unary(self, rpc: Rpc[Req, Resp], request: Req, *, seconds: float | None = None) -> Resp:
        """One request, one response."""
        limit = self.timeout.unary_seconds if seconds is None else seconds

        async def attempt(left: float | None) -> Resp:
            method = self._channel().unary_unary(
                rpc.path,
                request_serializer=rpc.request.SerializeToString,
                response_deserializer=rpc.response.FromString,
            )
            with self._tracing.call(rpc.name) as metadata:
                call = method(request, timeout=left, metadata=metadata)
                async with self._errors(rpc.name, limit, call):
                    response: Resp = await call
                    return response

        return await self.retrying(attempt, seconds=limit, idempotent=rpc.idempotent)

    async def stream(self, rpc: Rpc[Req, Resp], request: Req) -> AsyncGenerator[Resp, None]:
        """One request, many responses. Not tried again: the caller knows whether starting over is right."""
        method = self._channel().unary_stream(
            rpc.path,
            request_serializer=rpc.request.SerializeToString,
            response_deserializer=rpc.decode or rpc.response.FromString,
        )
        with self._tracing.call(rpc.name) as metadata:
            call = method(request, metadata=metadata)
            seconds = self.timeout.stream_seconds
            try:
                responses = call.__aiter__()
                while True:
                    async with self._errors(rpc.name, seconds, call):
                        try:
                            async with asyncio.timeout(seconds):
                                response = await anext(responses)
                        except StopAsyncIteration:
                            return
                    yield response
            finally:
                call.cancel()

    def patient_stream(self, rpc: Rpc[Req, Resp], request: Req) -> AsyncGenerator[Resp, None]:
        """As :meth:`stream`, but tried again while the server refuses to begin it for want of room."""
        return self._patient(lambda: self.stream(rpc, request))

    async def _patient(self, begin: Callable[[], AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
        failed = 0
        begun = False
        while True:
            try:
                async with contextlib.aclosing(begin()) as answers:
                    async for answer in answers:
                        begun = True
                        yield answer
                return
            except Overloaded as error:
                failed += 1
                pause = self.retry.next_pause(failed, error)
                if pause is None or begun:
                    raise
                await asyncio.sleep(pause)

    async def upload(self, rpc: Rpc[Req, Resp], requests: AsyncGenerator[Req, None]) -> Resp:
        """Many requests, one response, at most `stream_seconds` for each step. Not tried again."""
        # Any: the stubs demand the request iterator that the write style does without.
        method: Any = self._channel().stream_unary(
            rpc.path, request_serializer=rpc.request.SerializeToString, response_deserializer=rpc.response.FromString
        )
        with self._tracing.call(rpc.name) as metadata:
            call = with_first_status(method(metadata=metadata))
            seconds = self.timeout.stream_seconds
            try:
                async with contextlib.aclosing(requests):
                    async for request in requests:
                        async with self._errors(rpc.name, seconds, call):
                            try:
                                async with asyncio.timeout(seconds):
                                    await call.write(request)
                            except asyncio.InvalidStateError:
                                break  # the server has answered before the end; the answer says why
                async with self._errors(rpc.name, seconds, call):
                    async with asyncio.timeout(seconds):
                        await call.done_writing()
                        response: Resp = await call
                    return response
            finally:
                call.cancel()

    async def exchange(
        self, rpc: Rpc[Req, Resp], requests: AsyncGenerator[tuple[Req, Tag | None], None], *, window: int = _WINDOW
    ) -> AsyncGenerator[tuple[Tag, Resp], None]:
        """Sends requests while answers come back; at most `window` tagged ones are unanswered at a time.

        Args:
            rpc: A call with streams both ways whose answers come in the order of the requests.
            requests: Each with a tag when it is answered, with None when it is not (a chunk before the last).
            window: Hides the round trip, bounds the memory.

        Yields:
            The tag and its answer.
        """
        sent = Resendable(requests)
        try:
            async with contextlib.aclosing(self._patient(lambda: self._exchange(rpc, sent, window))) as answers:
                async for answer in answers:
                    yield answer
        finally:
            await sent.close()

    async def _exchange(
        self, rpc: Rpc[Req, Resp], requests: Resendable[Req, Tag], window: int
    ) -> AsyncGenerator[tuple[Tag, Resp], None]:
        method: Any = self._channel().stream_stream(  # Any: as above
            rpc.path,
            request_serializer=rpc.encode or rpc.request.SerializeToString,
            response_deserializer=rpc.response.FromString,
        )
        with self._tracing.call(rpc.name) as metadata:
            call = with_first_status(method(metadata=metadata))
            seconds = self.timeout.stream_seconds
            unanswered: asyncio.Queue[tuple[Tag] | None] = asyncio.Queue()
            room = asyncio.Semaphore(window)
            cut_short = False

            async def send() -> None:
                try:
                    async with contextlib.aclosing(requests.each()) as each:
                        async for request, tag in each:
                            if tag is not None:
                                await room.acquire()
                            async with self._errors(rpc.name, seconds, call):
                                async with asyncio.timeout(seconds):
                                    await call.write(request)
                            if tag is not None:
                                unanswered.put_nowait((tag,))
                    await call.done_writing()
                except asyncio.InvalidStateError:
                    # The call has ended with requests left: a status may still tell why, but it is not well.
                    nonlocal cut_short
                    cut_short = True
                finally:
                    unanswered.put_nowait(None)

            sender = asyncio.create_task(send())
            try:
                responses = call.__aiter__()
                while (tagged := await unanswered.get()) is not None:
                    async with self._errors(rpc.name, seconds, call):
                        try:
                            async with asyncio.timeout(seconds):
                                response = await anext(responses)
                        except StopAsyncIteration:
                            raise _cut_short(rpc.name, self.target) from None
                    room.release()
                    requests.answered()
                    yield tagged[0], response
                await sender
                async with self._errors(rpc.name, seconds, call):
                    async with asyncio.timeout(seconds):
                        async for _ in responses:
                            cut_short = True
                if cut_short:
                    raise _cut_short(rpc.name, self.target)
            except (DmesrError, asyncio.CancelledError):
                # When sending is what failed (the user's generator raised), reading fails only as a consequence.
                task = asyncio.current_task()
                if sender.done() and not (task is not None and task.cancelling()):
                    failure = None if sender.cancelled() else sender.exception()
                    if failure is not None:
                        raise failure from None
                raise
            finally:
                sender.cancel()
                call.cancel()
                await asyncio.gather(sender, return_exceptions=True)

    async def limits(self) -> admin_pb2.Limits:
        """The server's limits, asked for once."""
        if self._limits is None:
            response = await self.unary(SERVER_INFO, admin_pb2.GetServerInfoRequest())
            self._limits = response.limits
        return self._limits

    async def message_bytes(self) -> int:
        """How large a message may be made."""
        return min(_MESSAGE_BYTES, (await self.limits()).max_message_bytes * 3 // 4)

    async def chunk_bytes(self) -> int:
        """How large a piece of a large thing may be cut."""
        return min(_CHUNK_BYTES, (await self.limits()).max_message_bytes // 2)


def _cut_short(name: str, target: str) -> ApiError:
    return ApiError(
        f"{name} at {target}: the answers do not match the requests; is the server of another version?",
        code=grpc.StatusCode.INTERNAL,
    )
