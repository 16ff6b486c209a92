"""Counts and times each call, by whatever way it ends. Outermost of all layers; there only with metrics on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2

from dmesr_server.api.layers import OURS, behaviour, like
from dmesr_server.telemetry.metrics import Metrics, get

if TYPE_CHECKING:
    from dmesr_server.api.layers import Handler, Layer

_DETAILS = "grpc-status-details-bin"


def measuring() -> Sequence[Layer]:
    """The layer, where metrics are on."""
    metrics = get()
    return () if metrics is None else (MeasuringLayer(metrics),)


class MeasuringLayer:
    """Counts calls by code, failures by reason, and how long they take."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics

    def __call__(self, method: str, handler: Handler) -> Handler:
        """Lays itself around a method of ours."""
        if not method.startswith(OURS):
            return handler
        serve = behaviour(handler)
        name = method.removeprefix(OURS)

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            with self._measured(name, context):
                return await serve(request, context)

        return like(handler, call)  # a stream's answers are written by the layer within

    @contextlib.contextmanager
    def _measured(self, name: str, context: grpc.aio.ServicerContext[Any, Any]) -> Iterator[None]:
        metrics = self._metrics
        started = time.perf_counter()
        metrics.running.inc()
        code = "OK"
        try:
            yield
        except grpc.aio.AbortError:
            told: Any = context.code()
            code = getattr(told, "name", str(told))
            metrics.errors.labels(name, reason_of(context)).inc()
            raise
        except BaseException:  # the caller has gone, or its deadline has passed
            code = "CANCELLED"
            raise
        finally:
            metrics.running.dec()
            metrics.calls.labels(name, code).inc()
            metrics.seconds.labels(name).observe(time.perf_counter() - started)


def reason_of(context: Any) -> str:
    """The reason in the status that a call was aborted with; "UNKNOWN" where it has none."""
    for key, value in context.trailing_metadata() or ():
        if key == _DETAILS:
            info = error_details_pb2.ErrorInfo()
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Unpack(info):
                    return str(info.reason)
    return "UNKNOWN"
