"""A local gRPC server that answers as a test tells it to: for peers that misbehave, which the real server does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from dmesr.transport import Rpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status


class Peer:
    """Serves the handlers that a test gives it, on a free port unless told which."""

    def __init__(self, *, port: int = 0) -> None:
        self._pool = ThreadPoolExecutor(8)
        self._server = grpc.server(self._pool)
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}
        self._server.add_generic_rpc_handlers((_Handlers(self._handlers),))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def answer(self, rpc: Rpc[Any, Any], handler: Callable[..., Any], kind: str = "unary_unary") -> None:
        """Answers a call.

        Args:
            rpc: The call.
            handler: As a servicer's method: (request or iterator, context) to response or iterator.
            kind: "unary_unary", "unary_stream", "stream_unary" or "stream_stream".
        """
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        self._handlers[rpc.path] = make(
            handler,
            request_deserializer=rpc.request.FromString,
            response_serializer=rpc.response.SerializeToString,
        )

    def leave(self) -> None:
        """Ends all calls and lets the port go, as a server that dies."""
        self._server.stop(None).wait()

    def stop(self) -> None:
        """Leaves, and waits for the handlers."""
        self.leave()
        self._pool.shutdown()


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, handlers: dict[str, grpc.RpcMethodHandler]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._handlers.get(handler_call_details.method)


@contextmanager
def running_peer(*, port: int = 0) -> Iterator[Peer]:
    peer = Peer(port=port)
    try:
        yield peer
    finally:
        peer.stop()


def refuse(
    context: grpc.ServicerContext,
    code: grpc.StatusCode,
    reason: str,
    message: str,
    *,
    violations: dict[str, str] | None = None,
    retry_seconds: float | None = None,
    **metadata: str,
) -> None:
    """Fails the call as the service does: a google.rpc.Status with ErrorInfo, BadRequest and maybe RetryInfo."""
    details = []
    retry = error_details_pb2.RetryInfo()
    if retry_seconds is not None:
        retry.retry_delay.FromMilliseconds(round(retry_seconds * 1_000))
    for detail in (
        *([] if retry_seconds is None else [retry]),
        error_details_pb2.ErrorInfo(reason=reason, domain="dmesr", metadata=metadata),
        error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
                for field, description in (violations or {}).items()
            ]
        ),
    ):
        packed = any_pb2.Any()
        packed.Pack(detail)
        details.append(packed)
    status = status_pb2.Status(code=code.value[0], message=message, details=details)
    context.abort_with_status(rpc_status.to_status(status))
