"""Raw stubs of all services and what a failed call says: the API is tested without the SDK."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import pytest
from dmesr.v1 import (
    admin_pb2_grpc,
    embeddings_pb2_grpc,
    enrichment_pb2_grpc,
    errors_pb2,
    items_pb2,
    items_pb2_grpc,
    models_pb2_grpc,
    recommendations_pb2_grpc,
)
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status


@dataclass(frozen=True)
class Stubs:
    """The services of one server over one channel."""

    channel: grpc.Channel
    admin: admin_pb2_grpc.AdminServiceStub
    items: items_pb2_grpc.ItemServiceStub
    enrichment: enrichment_pb2_grpc.EnrichmentServiceStub
    embeddings: embeddings_pb2_grpc.EmbeddingServiceStub
    models: models_pb2_grpc.ModelServiceStub
    recommendations: recommendations_pb2_grpc.RecommendationServiceStub

    @classmethod
    def of(cls, channel: grpc.Channel) -> Stubs:
        return cls(
            channel,
            admin_pb2_grpc.AdminServiceStub(channel),
            items_pb2_grpc.ItemServiceStub(channel),
            enrichment_pb2_grpc.EnrichmentServiceStub(channel),
            embeddings_pb2_grpc.EmbeddingServiceStub(channel),
            models_pb2_grpc.ModelServiceStub(channel),
            recommendations_pb2_grpc.RecommendationServiceStub(channel),
        )


@dataclass(frozen=True)
class Failure:
    """What a failed call said."""

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: dict[str, str]
    fields: list[str]


def serving(channel: grpc.Channel, service: str = "") -> bool:
    """What health says of a service, of the whole server where it is not named."""
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def eventually(condition: Callable[[], bool], *, seconds: float = 5.0) -> None:
    """Waits until something has come about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def failure_of(call: Callable[[], object]) -> Failure:
    """Makes a call that must fail, and reads its status."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    status = rpc_status.from_call(caught.value)
    assert status is not None, caught.value
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        for kind in (info, request):
            if detail.Is(kind.DESCRIPTOR):
                detail.Unpack(kind)
    assert info.domain == "dmesr"
    assert f"ERROR_REASON_{info.reason}" in set(errors_pb2.ErrorReason.keys())
    assert "Traceback" not in status.message
    return Failure(
        code=caught.value.code(),
        reason=info.reason,
        message=status.message,
        metadata=dict(info.metadata),
        fields=[violation.field for violation in request.field_violations],
    )


def reason(problem: items_pb2.RowProblem) -> str:
    """The reason of a row's problem, by name."""
    return errors_pb2.ErrorReason.Name(problem.reason).removeprefix("ERROR_REASON_")
