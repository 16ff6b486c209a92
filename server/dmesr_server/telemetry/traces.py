"""Spans of calls and jobs, by OpenTelemetry, where traces are configured.

Everything here does nothing, and imports nothing, until :func:`exported` finds them wanted. A span tells names, codes,
reasons and counts. It never holds what items, histories or requests say, nor the message of an error, which may quote
them.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import platform
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

from dmesr_server.config import Config, TelemetryConfig
from dmesr_server.errors import ServiceError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import Tracer

_LOG = logging.getLogger(__name__)
_ASKED_BY = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_EXPORTERS = {
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
}
#: What has not reached the collector by then is given up: a stop must not wait for one that is down.
_CLOSING_SECONDS = 3.0
_LONGEST_VALUE = 200
_LONGEST_STATE = 512  # characters of `tracestate` that are handed on: what W3C asks for at least

Value = str | int | float | bool
Attributes = Mapping[str, Value]
Kind = Literal["SERVER", "CONSUMER", "CLIENT", "INTERNAL"]


class TracesUnavailableError(Exception):
    """Traces are wanted and cannot be had. The message is one line, with the remedy."""


class Span:
    """A span that is under way; where traces are off, or nobody traces this call, one that takes everything in vain."""

    def __init__(self, span: OtelSpan | None = None):
        self._span = span
        self._settled = False

    @property
    def is_recorded(self) -> bool:
        """Whether anybody will see it."""
        return self._span is not None and self._span.is_recording()

    def note(self, attributes: Attributes) -> None:
        """Tells more of it. Empty texts are left out, long ones cut."""
        if self._span is not None:
            self._span.set_attributes(_kept(attributes))

    def event(self, name: str) -> None:
        """Marks a moment."""
        if self._span is not None:
            self._span.add_event(name)

    def settled(self, *, failed: str = "") -> None:
        """Says how it ended; what is raised afterwards is no news.

        Args:
            failed: Why it came to a bad end: a reason or a code, never a message. Empty where it did not.
        """
        first, self._settled = not self._settled, True
        if first and failed and self._span is not None:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_attribute("error.type", failed)
            self._span.set_status(Status(StatusCode.ERROR, failed))


_NOWHERE = nullcontext(Span())  # many at once may enter it
_tracer: Tracer | None = None
_vllm_endpoint: str | None = None
#: How many further spans the job that is being worked on may have; None outside of jobs.
_ROOM: ContextVar[list[int] | None] = ContextVar("dmesr_trace_room", default=None)


def wanted(config: TelemetryConfig) -> bool:
    """Whether traces are configured: by the settings, else by OpenTelemetry's own variables.

    Args:
        config: The section `telemetry`.
    """
    if config.traces is not None:
        return config.traces
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or _exporter_name() == "none":
        return False
    return config.otlp_endpoint is not None or any(os.environ.get(name) for name in _ASKED_BY)


def are_on() -> bool:
    """Whether this process sends traces."""
    return _tracer is not None


def check(config: TelemetryConfig) -> None:
    """Finds out before the start whether the packages are there, where the settings ask for traces.

    Raises:
        TracesUnavailableError: They are not.
    """
    if config.traces or (config.traces is None and config.otlp_endpoint is not None):
        _exporter_class()


@contextlib.contextmanager
def exported(config: Config, *, process: str) -> Iterator[None]:
    """Switches traces on in this process where they are wanted, and sends what is left when the context ends.

    Where they cannot be had, a line in the log says so: :func:`check` is what refuses a start.

    Args:
        config: Says whether they are wanted, and where they go.
        process: The service's name, unless `OTEL_SERVICE_NAME` gives another.
    """
    global _tracer, _vllm_endpoint
    told = config.telemetry
    if not wanted(told):
        yield
        return
    try:
        exporter = _exporter(told)
    except TracesUnavailableError as error:
        _LOG.warning("there will be no traces: %s", error)
        yield
        return
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": process}
    resource = Resource.create({"process.pid": os.getpid(), "host.name": platform.node(), **named})
    ratio = told.sample_ratio
    sampler = None if ratio is None else ParentBased(TraceIdRatioBased(ratio))
    provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    _tracer = provider.get_tracer("dmesr")
    _vllm_endpoint = _plain_grpc_endpoint(told)
    _LOG.info("traces are sent")
    try:
        yield
    finally:
        _tracer = None
        closing = threading.Thread(target=provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(_CLOSING_SECONDS)


def entry(name: str, *, kind: Kind, carrier: Mapping[str, str], attributes: Attributes) -> AbstractContextManager[Span]:
    """A span for what comes in from elsewhere: a call, a job. What is done within it are its children.

    Args:
        name: Of few different values.
        kind: Of OpenTelemetry's kinds.
        carrier: W3C headers of whoever caused it; without them a trace begins here.
        attributes: What is known at the start.
    """
    if _tracer is None:
        return _NOWHERE
    return _begun(name, kind=kind, attributes=attributes, context=_context(carrier))


def step(
    name: str, attributes: Attributes | None = None, *, kind: Kind = "INTERNAL", within: Sequence[Span] | None = None
) -> AbstractContextManager[Span]:
    """A span for a part of the work. There is none where nobody traces the whole.

    Args:
        name: Of few different values.
        attributes: What is known at the start.
        kind: Of OpenTelemetry's kinds.
        within: What it is part of, where that is not what this thread or task does: the first of these that is recorded
            is the parent, the others are linked.
    """
    if _tracer is None:
        return _NOWHERE
    from opentelemetry import trace

    if within is None:
        parents = [trace.get_current_span()]
    else:
        parents = [span._span for span in within if span._span is not None]
    parents = [parent for parent in parents if parent.is_recording()]
    room = _ROOM.get()
    if not parents or (room is not None and room[0] <= 0):
        return _NOWHERE
    if room is not None:
        room[0] -= 1
    context = trace.set_span_in_context(parents[0])
    links = [trace.Link(parent.get_span_context()) for parent in parents[1:]]
    return _begun(name, kind=kind, attributes=attributes or {}, context=context, links=links)


@contextlib.contextmanager
def bounded(steps: int) -> Iterator[None]:
    """Lets the work within have so many steps at most: a job over a million items is no trace that anybody can read."""
    before = _ROOM.set([steps])
    try:
        yield
    finally:
        _ROOM.reset(before)


def note(attributes: Attributes) -> None:
    """Tells more of the span that is under way here."""
    if _tracer is not None:
        from opentelemetry import trace

        Span(trace.get_current_span()).note(attributes)


def carrier() -> dict[str, str]:
    """The W3C headers by which another process continues what is under way here; empty where nobody traces it."""
    headers: dict[str, str] = {}
    if _tracer is not None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(headers)
        if len(headers.get("tracestate", "")) > _LONGEST_STATE:
            del headers["tracestate"]
    return headers


def trace_id() -> str:
    """The id of the trace that is under way here, 32 hex digits; empty where there is none."""
    if _tracer is None:
        return ""
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""


def vllm_endpoint() -> str | None:
    """Where vLLM's processes can send spans of their own: they speak unencrypted gRPC unless told otherwise."""
    return None if _tracer is None else _vllm_endpoint


@contextlib.contextmanager
def _begun(name: str, *, kind: Kind, attributes: Attributes, context: Any, links: Sequence[Any] = ()) -> Iterator[Span]:
    from opentelemetry import trace

    tracer = _tracer
    if tracer is None:  # the server stops just now
        yield Span()
        return
    started = tracer.start_span(
        name, context=context, kind=trace.SpanKind[kind], attributes=_kept(attributes), links=links
    )
    span = Span(started)
    # Messages of exceptions are not recorded: they may quote what was sent.
    with trace.use_span(started, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield span
        except ServiceError as error:
            span.note({"dmesr.reason": error.reason})
            span.settled(failed=error.reason)
            raise
        except Exception as error:
            span.settled(failed=type(error).__name__)
            raise


def _context(carrier: Mapping[str, str]) -> Any:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract(dict(carrier), context=Context())


def _kept(attributes: Attributes) -> dict[str, Value]:
    return {
        name: value[:_LONGEST_VALUE] if isinstance(value, str) else value
        for name, value in attributes.items()
        if value != ""
    }


def _exporter_name() -> str:
    return os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() or "otlp"


def _protocol() -> str:
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if given := os.environ.get(name, "").strip().lower():
            return given
    return "grpc"


def _exporter_class() -> Any:
    name, protocol = _exporter_name(), _protocol()
    if name == "console":
        module, kind, missing = "opentelemetry.sdk.trace.export", "ConsoleSpanExporter", "dmesr[otel]"
    elif name not in ("otlp", "none"):  # "none" only gets here where the settings ask for traces all the same
        raise TracesUnavailableError(f"OTEL_TRACES_EXPORTER is {name!r}; expected otlp, console or none")
    elif protocol not in _EXPORTERS:
        expected = " or ".join(_EXPORTERS)
        raise TracesUnavailableError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; expected {expected}")
    else:
        module, kind = _EXPORTERS[protocol], "OTLPSpanExporter"
        missing = "dmesr[otel]" if protocol == "grpc" else "dmesr[otel] opentelemetry-exporter-otlp-proto-http"
    try:
        importlib.import_module("opentelemetry.sdk.trace")
        return getattr(importlib.import_module(module), kind)
    except ModuleNotFoundError as error:
        packages = " ".join(f"'{name}'" for name in missing.split())
        raise TracesUnavailableError(
            f"traces need the otel extra (there is no module {error.name!r}): pip install {packages}, or set "
            "telemetry.traces = false"
        ) from error


def _exporter(config: TelemetryConfig) -> SpanExporter:
    kind, endpoint = _exporter_class(), config.otlp_endpoint
    if endpoint is not None and _protocol() != "grpc":
        endpoint = f"{endpoint.rstrip('/')}/v1/traces"
    try:
        made: SpanExporter = kind() if _exporter_name() == "console" else kind(endpoint=endpoint)
    except Exception as error:  # whatever it ends with where one of its variables makes no sense
        raise TracesUnavailableError(f"OpenTelemetry does not take its variables OTEL_…: {error}") from error
    return made


def _plain_grpc_endpoint(config: TelemetryConfig) -> str | None:
    given = config.otlp_endpoint or next(filter(None, map(os.environ.get, _ASKED_BY[1:])), None)
    if os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc") != "grpc" or _protocol() != "grpc":
        return None
    return given if given is not None and given.startswith("http://") else None
