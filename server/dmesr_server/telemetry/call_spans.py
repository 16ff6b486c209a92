"""One span for each call, which continues the caller's trace. The outermost layer; there only with traces on."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from dmesr_server.api.layers import OURS, behaviour, like
from dmesr_server.telemetry import logs, traces
from dmesr_server.telemetry.calls import reason_of
from dmesr_server.telemetry.traces import Span

if TYPE_CHECKING:
    from dmesr_server.api.layers import Handler, Layer

_HEADERS = ("traceparent", "tracestate")
_NAMES = ("catalog", "model", "recipe")  # fields of requests: names that people gave, no contents
#: Of these the server is to blame; of the others the call is (OpenTelemetry's conventions for gRPC).
_FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")


def tracing() -> Sequence[Layer]:
    """The layer, where traces are on."""
    return (trace_calls,) if traces.are_on() else ()


def trace_calls(method: str, handler: Handler) -> Handler:
    """Lays a span around a method of ours."""
    if not method.startswith(OURS):
        return handler
    serve = behaviour(handler)
    name = method.removeprefix("/")

    def seen(request: Any, span: Span) -> Any:
        if handler.request_streaming:
            return _seen(request, span)
        span.note(_names(request))
        return request

    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        with _traced(name, context) as span:
            return await serve(seen(request, span), context)

    return like(handler, call)  # a stream's answers are written by a layer within


@contextlib.contextmanager
def _traced(name: str, context: grpc.aio.ServicerContext[Any, Any]) -> Iterator[Span]:
    given = {key: str(value) for key, value in context.invocation_metadata() or () if key in _HEADERS}
    told = {"rpc.system.name": "grpc", "rpc.method": name}
    with traces.entry(name, kind="SERVER", carrier=given, attributes=told) as span:
        code, reason = grpc.StatusCode.OK, ""
        try:
            yield span
        except grpc.aio.AbortError:
            code, reason = _code(context), reason_of(context)
            raise
        except BaseException:  # the caller has gone, or its deadline has passed
            code = grpc.StatusCode.CANCELLED
            raise
        finally:
            request_id = logs.REQUEST_ID.get()  # settled further in
            told = {"rpc.response.status_code": code.name, "dmesr.reason": reason, "dmesr.request_id": request_id}
            span.note(told)
            span.settled(failed=(reason or code.name) if code.name in _FAULTS else "")


async def _seen(requests: AsyncIterator[Any], span: Span) -> AsyncIterator[Any]:
    first = True
    async for request in requests:
        if first:
            span.note(_names(request))
        first = False
        yield request


def _names(request: Any) -> Mapping[str, str]:
    given = {name: getattr(request, name, "") for name in _NAMES}
    return {f"dmesr.{name}": value for name, value in given.items() if isinstance(value, str)}


def _code(context: Any) -> grpc.StatusCode:
    # As grpc.aio keeps it: the code itself, or its number.
    told = context.code()
    return next((code for code in grpc.StatusCode if told in (code, code.value[0])), grpc.StatusCode.UNKNOWN)
