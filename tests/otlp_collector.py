"""A collector of traces on a real socket: OTLP by gRPC, kept in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

WAIT_SECONDS = 60.0  # a loaded machine needs some


@dataclass(frozen=True)
class Seen:
    """A span as it came in; ids are hex digits, the parent's empty where there is none."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    links: Sequence[str]  # ids of spans
    attributes: Mapping[str, Any]
    failed: bool
    process: str


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """The collector. Use it in a `with`."""

    def __init__(self) -> None:
        self.received = b""  # all of it, to be searched for what must not be there
        self._spans: list[Seen] = []
        self._came = threading.Condition()
        self._server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self._port = self._server.add_insecure_port("127.0.0.1:0")

    def __enter__(self) -> Collector:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def spans(self) -> list[Seen]:
        with self._came:
            return list(self._spans)

    def named(self, name: str, **wanted: Any) -> list[Seen]:
        """The spans of a name; `kind="SERVER"` and the like choose among them."""
        return [
            span
            for span in self.spans
            if span.name == name and all(getattr(span, key) == value for key, value in wanted.items())
        ]

    def parent(self, span: Seen) -> Seen:
        """The span that this one is a part of."""
        (found,) = [other for other in self.spans if other.span_id == span.parent_id]
        return found

    def ancestors(self, span: Seen) -> list[str]:
        """Names up to the root, of spans of one trace."""
        names = []
        while span.parent_id:
            parent = self.parent(span)
            assert parent.trace_id == span.trace_id
            span = parent
            names.append(span.name)
        return names

    def wait(self, settled: Callable[[Collector], object]) -> None:
        """Until something is so."""
        deadline = time.monotonic() + WAIT_SECONDS
        with self._came:
            while not settled(self):
                assert self._came.wait(deadline - time.monotonic()), sorted(span.name for span in self._spans)

    def Export(self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext) -> Any:
        with self._came:
            self.received += request.SerializeToString()
            for resource in request.resource_spans:
                process = _values(resource.resource.attributes)["service.name"]
                for scope in resource.scope_spans:
                    self._spans += [_seen(span, process) for span in scope.spans]
            self._came.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()


def _seen(span: Span, process: str) -> Seen:
    return Seen(
        name=span.name,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        links=[link.span_id.hex() for link in span.links],
        attributes=_values(span.attributes),
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        process=process,
    )


def _values(attributes: Sequence[KeyValue]) -> dict[str, Any]:
    def value(given: AnyValue) -> Any:
        kind = given.WhichOneof("value")
        return None if kind is None else getattr(given, kind)

    return {pair.key: value(pair.value) for pair in attributes}
