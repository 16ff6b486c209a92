"""Spans of calls, by OpenTelemetry, and the W3C headers by which the server continues them.

As other libraries do, this one makes spans and leaves to the program where they go: whoever sets up an OpenTelemetry
SDK sees them. A program that never imports OpenTelemetry does not get it imported from here.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from dmesr.errors import ApiError, DeadlineExceeded, DmesrError, InvalidInput, ServerUnavailable

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

#: What `connect(tracing=…)` takes.
Wanted: TypeAlias = "bool | TracerProvider | None"
Metadata = tuple[tuple[str, str], ...]
_CODES = {
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    ServerUnavailable: grpc.StatusCode.UNAVAILABLE,
}


class Tracing:
    """The spans of one client's calls."""

    def __init__(self, wanted: Wanted, *, target: str, metadata: Metadata) -> None:
        """Settles whether calls are traced.

        Args:
            wanted: True: by the program's global tracer provider; a provider: by that one. None is True in a program
                that has imported `opentelemetry.trace`.
            target: The server's address, HOST:PORT.
            metadata: What every call carries.

        Raises:
            InvalidInput: Traces are wanted, and the packages are not there.
        """
        self._wanted = wanted is not False
        self._provider = None if isinstance(wanted, bool) else wanted
        self._untraced = nullcontext(metadata)
        self._metadata = metadata
        host, _, port = target.rpartition(":")
        self._peer: dict[str, Any] = (
            {"server.address": host, "server.port": int(port)} if port.isdigit() else {"server.address": target}
        )
        self._tracer: Any = None
        if wanted:
            try:
                importlib.import_module("opentelemetry.trace")
            except ModuleNotFoundError as error:
                raise InvalidInput(
                    f"tracing needs the otel extra (there is no module {error.name!r}): pip install 'dmesr[otel]'"
                ) from error

    def call(self, name: str) -> AbstractContextManager[Metadata]:
        """One attempt at a call, from its start to its end; gives the call's metadata.

        Args:
            name: "Service/Method" of package dmesr.v1.
        """
        if not self._wanted or "opentelemetry.trace" not in sys.modules:
            return self._untraced
        return self._traced(f"dmesr.v1.{name}")

    @contextlib.contextmanager
    def _traced(self, method: str) -> Iterator[Metadata]:
        # The span is not made the current one: a call that streams is left and entered again between its messages.
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        if self._tracer is None:
            self._tracer = trace.get_tracer("dmesr", tracer_provider=self._provider)
        told = {"rpc.system.name": "grpc", "rpc.method": method, **self._peer}
        span = self._tracer.start_span(method, kind=trace.SpanKind.CLIENT, attributes=told)
        headers: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(headers, context=trace.set_span_in_context(span))
        code, reason = grpc.StatusCode.OK, ""
        try:
            yield (*self._metadata, *headers.items())
        except DmesrError as error:
            # Not the message: it may quote what was sent.
            reason = error.reason if isinstance(error, ApiError) else type(error).__name__
            code = error.code if isinstance(error, ApiError) else _CODES.get(type(error), grpc.StatusCode.UNKNOWN)
            raise
        except BaseException as error:  # left early, cancelled, or a fault of the caller's own generator
            code = grpc.StatusCode.CANCELLED
            reason = type(error).__name__ if isinstance(error, Exception) else ""
            raise
        finally:
            span.set_attribute("rpc.response.status_code", code.name)
            if reason:
                span.set_attribute("error.type", reason)
                span.set_status(trace.Status(trace.StatusCode.ERROR, reason))
            span.end()
