"""What every call passes through: the bearer token, errors to gRPC status, a line in the log."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from dmesr_server.control import read_only_refusal
from dmesr_server.errors import ServiceError

DOMAIN = "dmesr"
_LOG = logging.getLogger("dmesr_server.api")
#: Services that answer without a token: load balancers and tools ask them before they know one.
_OPEN = ("/grpc.health.v1.Health/", "/grpc.reflection.")

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]
    Interceptor = grpc.aio.ServerInterceptor[Any, Any]
    Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]
else:
    Interceptor = grpc.aio.ServerInterceptor  # generic for type checkers only


def to_status(error: ServiceError) -> status_pb2.Status:
    """The error as the wire tells it: one code, one ErrorInfo and, for bad fields, one BadRequest."""
    details = [error_details_pb2.ErrorInfo(domain=DOMAIN, reason=error.reason, metadata=dict(error.metadata))]
    packed = [_packed(detail) for detail in details]
    if error.violations:
        packed.append(
            _packed(
                error_details_pb2.BadRequest(
                    field_violations=[
                        error_details_pb2.BadRequest.FieldViolation(field=fault.field, description=fault.description)
                        for fault in error.violations
                    ]
                )
            )
        )
    return status_pb2.Status(code=code_pb2.Code.Value(error.code.name), message=error.message, details=packed)


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
    await context.abort(status.code, status.details, status.trailing_metadata)


class TokenInterceptor(Interceptor):
    """Lets in only calls that carry the configured bearer token."""

    def __init__(self, token: str):
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        """Hands the call on, or answers UNAUTHENTICATED."""
        method: str = handler_call_details.method
        handler = await continuation(handler_call_details)
        if method.startswith(_OPEN) or handler is None:
            return handler
        given = dict(handler_call_details.invocation_metadata or ()).get("authorization")
        value = given if isinstance(given, bytes) else (given or "").encode()
        if hmac.compare_digest(value, self._expected):
            return handler
        wrong = "carries a bearer token that is not valid" if given else "carries no bearer token"
        return _refusing(
            handler,
            ServiceError("UNAUTHENTICATED", f"the call {wrong}; send the metadata 'authorization: Bearer TOKEN'"),
        )


#: The calls that change nothing. Whatever is not named here is refused by a read-only replica.
READING = frozenset(
    {
        "AdminService/ListCatalogs",
        "AdminService/GetServerInfo",
        "AdminService/GetStoreStats",
        "EmbeddingService/ListRecipes",
        "EmbeddingService/GetEmbeddingStats",
        "EmbeddingService/ReadEmbeddings",
        "EmbeddingService/FindNeighbours",
        "EnrichmentService/EstimateJob",
        "EnrichmentService/GetJob",
        "EnrichmentService/ListJobs",
        "EnrichmentService/WatchJob",
        "EnrichmentService/GetDescriptions",
        "EnrichmentService/ListDescriptions",
        "EnrichmentService/PreviewPrompt",
        "EnrichmentService/GetEnrichmentStats",
        "ItemService/GetItems",
        "ItemService/ListItems",
        "ItemService/FindMissingPictures",
        "ItemService/GetPicture",
        "ModelService/GetModel",
        "ModelService/ListModels",
        "ModelService/ListAliases",
        "RecommendationService/Recommend",
        "RecommendationService/BatchRecommend",
    }
)


class ReadOnlyInterceptor(Interceptor):
    """Lets in only calls that change nothing."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        """Hands the call on, or answers FAILED_PRECONDITION."""
        method: str = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None or method.startswith(_OPEN) or method.removeprefix("/dmesr.v1.") in READING:
            return handler
        return _refusing(handler, read_only_refusal())


def _refusing(handler: Handler, error: ServiceError) -> Handler:
    async def refuse(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await _abort(context, error)

    async def refuse_stream(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        await _abort(context, error)
        yield  # unreachable, but it is what makes this a stream

    return _like(handler, refuse_stream if handler.response_streaming else refuse)


def _like(handler: Handler, behaviour: Callable[..., Any]) -> Handler:
    """The same kind of method with another behaviour."""
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[bool(handler.request_streaming), bool(handler.response_streaming)]
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


def _behaviour(handler: Handler) -> Callable[..., Any]:
    found = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    assert found is not None
    return found


@dataclass(frozen=True)
class _Call:
    method: str
    started: float  # seconds, monotonic
    peer: str

    def log(self, code: str, error: ServiceError | None = None) -> None:
        milliseconds = (time.monotonic() - self.started) * 1_000
        if error is None:
            _LOG.debug("%s %s %.1f ms %s", self.method, code, milliseconds, self.peer)
        else:
            _LOG.info(
                "%s %s %.1f ms %s %s: %s", self.method, code, milliseconds, self.peer, error.reason, error.message
            )


class CallInterceptor(Interceptor):
    """Turns what a servicer raises into a status, holds the message limit, and logs each call."""

    def __init__(self, *, max_message_bytes: int):
        self._max_message_bytes = max_message_bytes

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        """Wraps the method."""
        method: str = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None or method.startswith(_OPEN):
            return handler
        serve = _behaviour(handler)
        checked = self._checked if handler.request_streaming else self._check_request

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            seen = _Call(method, time.monotonic(), context.peer())
            error: ServiceError
            try:
                answer = await serve(checked(request), context)
                self._check_answer(answer)
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

        async def call_stream(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            seen = _Call(method, time.monotonic(), context.peer())
            error: ServiceError
            try:
                # Closed at once when the caller goes away, not when the garbage collector comes by.
                async with contextlib.aclosing(serve(checked(request), context)) as answers:
                    async for answer in answers:
                        yield answer
            except ServiceError as raised:
                error = raised
            except (asyncio.CancelledError, GeneratorExit, grpc.aio.AbortError, grpc.aio.BaseError):
                seen.log("CANCELLED")
                raise
            except Exception as fault:
                error = internal(fault, method)
            else:
                seen.log("OK")
                return
            seen.log(error.code.name, error)
            await _abort(context, error)

        return _like(handler, call_stream if handler.response_streaming else call)

    def _check_request(self, request: Message) -> Message:
        size = request.ByteSize()
        if size > self._max_message_bytes:
            raise ServiceError(
                "REQUEST_TOO_LARGE",
                f"the message has {size} bytes, at most {self._max_message_bytes} (max_message_bytes) are allowed; "
                "send less in one message",
                limit="max_message_bytes",
                expected=self._max_message_bytes,
                actual=size,
            )
        return request

    async def _checked(self, requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
        async for request in requests:
            yield self._check_request(request)

    def _check_answer(self, answer: Message) -> None:
        # A client with the usual cap would fail with a bare RESOURCE_EXHAUSTED that tells it nothing.
        size = answer.ByteSize()
        if size > self._max_message_bytes:
            raise ServiceError(
                "REQUEST_TOO_LARGE",
                f"the answer would have {size} bytes, at most {self._max_message_bytes} (max_message_bytes) are "
                "allowed; ask for less in one call",
                limit="max_message_bytes",
                expected=self._max_message_bytes,
                actual=size,
            )
