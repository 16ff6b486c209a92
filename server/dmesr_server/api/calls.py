"""The outer layer of every call: errors to gRPC status, the message limit, a line in the log."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from dmesr_server.api.idle import WATCH, Watch
from dmesr_server.api.layers import behaviour, like
from dmesr_server.caller import caller
from dmesr_server.errors import ServiceError
from dmesr_server.telemetry import logs

DOMAIN = "dmesr"
_LOG = logging.getLogger("dmesr_server.api")
#: Of a status: gRPC's peers refuse headers of more than 8 KiB, and the message goes into two of them.
_MESSAGE_CHARACTERS, _VALUE_CHARACTERS, _VIOLATIONS = 600, 200, 5
#: Services that are not ours: they write their own status.
OPEN = ("/grpc.health.v1.Health/", "/grpc.reflection.")

if TYPE_CHECKING:
    from dmesr_server.api.layers import Handler


def to_status(error: ServiceError) -> status_pb2.Status:
    """The error as the wire tells it: one code, one ErrorInfo; a BadRequest for bad fields, a RetryInfo for a hint.

    It travels as a header, and a peer that gets too long a header drops the call without a reason: long values, which
    are the caller's own, are cut.
    """
    metadata = {key: _cut(value, _VALUE_CHARACTERS) for key, value in error.metadata.items()}
    packed = [_packed(error_details_pb2.ErrorInfo(domain=DOMAIN, reason=error.reason, metadata=metadata))]
    if error.violations:
        packed.append(
            _packed(
                error_details_pb2.BadRequest(
                    field_violations=[
                        error_details_pb2.BadRequest.FieldViolation(
                            field=_cut(fault.field, _VALUE_CHARACTERS),
                            description=_cut(fault.description, _VALUE_CHARACTERS),
                        )
                        for fault in error.violations[:_VIOLATIONS]
                    ]
                )
            )
        )
    if error.retry_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_seconds * 1_000))
        packed.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    message = _cut(error.message, _MESSAGE_CHARACTERS)
    return status_pb2.Status(code=code_pb2.Code.Value(error.code.name), message=message, details=packed)


def _cut(text: str, characters: int) -> str:
    """The text, its middle left out where it is long: what stands at its ends tells most."""
    if len(text) <= characters:
        return text
    half = characters // 2
    return f"{text[:half]} … ({len(text) - 2 * half} characters left out) … {text[-half:]}"


def internal(fault: BaseException, method: str) -> ServiceError:
    """A fault of the server itself: the traceback goes to the log under an id, the id to the caller."""
    fault_id = uuid.uuid4().hex[:12]
    _LOG.error("%s failed, id %s", method, fault_id, exc_info=fault)
    return ServiceError(
        "INTERNAL", f"the server failed; its log tells why under the id {fault_id}", id=fault_id, method=method
    )


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: ServiceError) -> None:
    status = rpc_status.to_status(to_status(error))
    # Not `abort_with_status`: it came to grpc.aio later than the oldest grpcio that we support.
    # What was set before is replaced by what is aborted with.
    await context.abort(status.code, status.details, (*status.trailing_metadata, (logs.HEADER, logs.REQUEST_ID.get())))


def guarded(handler: Handler, check: Callable[[Any], None]) -> Handler:
    """The same method behind a check, for services that are not ours and write their own status.

    Args:
        handler: What serves the method.
        check: Of the call's context. What it raises is told to the caller.
    """
    serve = behaviour(handler)

    async def checked(context: Any) -> None:
        logs.begin_request(context.invocation_metadata())
        try:
            check(context)
        except ServiceError as error:
            await _abort(context, error)

    async def call(request: Any, context: Any) -> Any:
        await checked(context)
        return await serve(request, context)

    async def call_stream(request: Any, context: Any) -> AsyncIterator[Any]:
        await checked(context)
        async for answer in serve(request, context):
            yield answer

    # A stream may also be a coroutine that writes its answers itself, as that of gRPC's own health service.
    return like(handler, call_stream if inspect.isasyncgenfunction(serve) else call)


@dataclass(frozen=True)
class _Refused:
    """Bytes that no method gets to see, and why."""

    error: ServiceError


def _parsing(handler: Handler, *, max_bytes: int) -> Callable[[bytes], Any]:
    """Reads messages; what raises here would reach the caller as gRPC's own UNKNOWN, without a reason.

    Their size is looked at here, where the bytes are: to tell it of a message, protobuf writes all of it out again.
    """
    parse = handler.request_deserializer
    assert parse is not None

    def read(data: bytes) -> Any:
        if len(data) > max_bytes:
            return _Refused(
                ServiceError(
                    "REQUEST_TOO_LARGE",
                    f"the message has {len(data)} bytes, at most {max_bytes} (max_message_bytes) are allowed; "
                    "send less in one message",
                    limit="max_message_bytes",
                    expected=max_bytes,
                    actual=len(data),
                )
            )
        try:
            return parse(data)
        except DecodeError as error:
            return _Refused(
                ServiceError(
                    "INVALID_FIELD",
                    f"the bytes sent are no message of this method: {error}; use this version's .proto files",
                )
            )

    return read


def _accepted(request: Message | _Refused) -> Message:
    if isinstance(request, _Refused):
        raise request.error
    return request


@dataclass(frozen=True)
class _Call:
    method: str
    started: float  # seconds, monotonic
    peer: str
    catalog: str  # "" where it is not known

    def log(self, code: str, error: ServiceError | None = None) -> None:
        milliseconds = (time.monotonic() - self.started) * 1_000
        # Of calls that are refused for want of room there are many, and one line tells of them all: `admission`.
        level = logging.DEBUG if error is None or error.reason == "OVERLOADED" else logging.INFO
        if not _LOG.isEnabledFor(level):
            return
        reason = "" if error is None else error.reason
        told = {
            "method": self.method,
            "catalog": self.catalog[:_VALUE_CHARACTERS],
            "code": code,
            "reason": reason,
            "milliseconds": round(milliseconds, 3),
            "peer": self.peer,
            "caller": caller(),
        }
        line = f"{self.method} {code} {milliseconds:.1f} ms {self.peer} {reason} request={logs.REQUEST_ID.get()}"
        _LOG.log(level, "%s", line, extra=told)
        if error is not None:
            _LOG.debug("%s", error.message)  # it may hold what the caller sent


class CallLayer:
    """Turns what a servicer raises into a status, holds the limits of messages and of idle streams, logs each call."""

    def __init__(self, *, max_message_bytes: int, idle_seconds: float):
        self._max_message_bytes = max_message_bytes
        self._idle_seconds = idle_seconds

    def __call__(self, method: str, handler: Handler) -> Handler:
        """Lays itself around a method of ours."""
        if method.startswith(OPEN):
            return handler
        serve = behaviour(handler)
        checked = self._checked if handler.request_streaming else _accepted

        async def answered(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            if not handler.request_streaming:
                return await serve(checked(request), context)
            async with Watch(self._idle_seconds):
                return await serve(checked(request), context)

        async def streamed(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            # Closed at once when the caller goes away, not when the garbage collector comes by. Written here and not by
            # gRPC: what ends the waiting for a client that reads nothing must be ours to answer.
            async with (
                Watch(self._idle_seconds) as watch,
                contextlib.aclosing(serve(checked(request), context)) as answers,
            ):
                begun = False
                async for answer in answers:
                    if not begun:
                        # By itself: where nobody takes the first answer, gRPC would send what came with it once more
                        # with the status, and lose the status.
                        await context.send_initial_metadata(())
                        begun = True
                    await context.write(answer)
                    watch.moved()

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            request_id = logs.begin_request(context.invocation_metadata())
            seen = _Call(method, time.monotonic(), context.peer(), getattr(request, "catalog", ""))
            context.set_trailing_metadata(((logs.HEADER, request_id),))
            error: ServiceError
            try:
                answer = None
                if handler.response_streaming:
                    await streamed(request, context)
                else:
                    answer = self._written(await answered(request, context))
            except ServiceError as raised:
                error = raised
            except (asyncio.CancelledError, grpc.aio.AbortError, grpc.aio.BaseError):
                seen.log("CANCELLED")
                raise
            except Exception as fault:
                error = internal(fault, method)
            else:
                seen.log("OK")
                return answer
            seen.log(error.code.name, error)
            await _abort(context, error)
            return None

        parse = _parsing(handler, max_bytes=self._max_message_bytes)
        return like(handler, call, parse, answers_bytes=not handler.response_streaming)

    async def _checked(self, requests: AsyncIterator[Message | _Refused]) -> AsyncIterator[Message]:
        watch = WATCH.get()
        async for request in requests:
            if watch is not None:
                watch.moved()
            yield _accepted(request)

    def _written(self, answer: Message) -> bytes:
        """The answer written out: to tell its size, protobuf does so anyway, and gRPC would a second time."""
        data = answer.SerializeToString()
        # A client with the usual cap would fail with a bare RESOURCE_EXHAUSTED that tells it nothing.
        if len(data) > self._max_message_bytes:
            raise ServiceError(
                "REQUEST_TOO_LARGE",
                f"the answer would have {len(data)} bytes, at most {self._max_message_bytes} (max_message_bytes) are "
                "allowed; ask for less in one call",
                limit="max_message_bytes",
                expected=self._max_message_bytes,
                actual=len(data),
            )
        return data
