"""Estimates: what a job would do and cost."""

from __future__ import annotations

from dataclasses import dataclass

from dmesr.transport import Rpc
from dmesr.v1 import enrichment_pb2

ESTIMATE = Rpc(
    "EnrichmentService/EstimateJob",
    enrichment_pb2.EstimateJobRequest,
    enrichment_pb2.EstimateJobResponse,
    idempotent=True,
)


@dataclass(frozen=True)
class RouteEstimate:
    """The work of one route."""

    route: str
    applicable: int  # items for which the route applies
    reused: int  # items whose description exists already
    to_describe: int
    to_encode: int


@dataclass(frozen=True)
class Estimate:
    """What a job would do and cost."""

    items: int  # that the job would look at
    routes: tuple[RouteEstimate, ...]
    seconds: float | None  # by the rates of earlier jobs; None when there were none
    tokens: int | None  # read and written; None where the describer counts none
    tokens_in: int | None  # read: prompts and pictures, each round of refinement anew
    tokens_out: int | None  # written
    store_bytes: int
    basis: str  # how the figures were got, in a sentence
    sample_descriptions: int  # of earlier jobs, that time and tokens were measured on


def estimate_from_wire(answer: enrichment_pb2.EstimateJobResponse) -> Estimate:
    """The wire's estimate."""
    return Estimate(
        items=answer.items,
        routes=tuple(
            RouteEstimate(one.route, one.applicable, one.reused, one.to_describe, one.to_encode)
            for one in answer.routes
        ),
        seconds=answer.seconds if answer.HasField("seconds") else None,
        tokens=answer.tokens if answer.HasField("tokens") else None,
        tokens_in=answer.tokens_in if answer.HasField("tokens_in") else None,
        tokens_out=answer.tokens_out if answer.HasField("tokens_out") else None,
        store_bytes=answer.store_bytes,
        basis=answer.basis,
        sample_descriptions=answer.sample_descriptions,
    )
